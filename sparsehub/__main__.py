"""python -m sparsehub"""

from sparsehub.cli import main

main()
