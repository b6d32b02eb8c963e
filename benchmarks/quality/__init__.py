"""Which method to use, by test scores: methods x tasks x seeds, and five real tasks trained and served."""
