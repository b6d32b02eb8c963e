// The ops of library.py inside a compiled program. Inductor puts this file into the program's source, in its block of C
// declarations; torch's C interface (AtenTensorHandle) is there already. The kernels themselves are in the extension
// module (exported.hpp), which is loaded before the program.

void sparsehub_sparse_linear(const float* x, int64_t in, const int64_t* maps, int64_t map_count, const int64_t* blocks,
                             int64_t count);
void sparsehub_shared_linear(const float* x, int64_t in, const int64_t* maps, int64_t map_count, const int64_t* blocks,
                             int64_t count, const int64_t* rows);
void sparsehub_int8_linear(const float* x, int64_t tokens, int64_t in, const int64_t* maps, const int64_t* weights,
                           int64_t map_count, const int64_t* blocks, int64_t count);
int64_t sparsehub_embedding(const int64_t* ids, int64_t tokens, const float* weight, int64_t rows, float* y,
                            int64_t width, const int64_t* blocks, int64_t count, const int64_t* table);
void sparsehub_norm(const float* x, float* y, int64_t width, const int64_t* blocks, int64_t count, const int64_t* table,
                    float epsilon, int centered);

int sparsehub_few_rows(const float* x, int64_t rows, int64_t in, const float* w, const float* bias, float* y,
                       int64_t out, int add);
void sparsehub_gelu(const float* x, float* y, int64_t count);

struct SparsehubTensor {  // what the ops read of a tensor
    AtenTensorHandle handle;
    int64_t ndim, numel;
    int64_t* sizes;
    void* data;

    explicit SparsehubTensor(AtenTensorHandle given) : handle(given) {
        bool contiguous;
        AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_is_contiguous(handle, &contiguous));
        AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dim(handle, &ndim));
        AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_numel(handle, &numel));
        AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(handle, &sizes));
        AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(handle, &data));
        if (!contiguous) throw std::runtime_error("an op of sparsehub got a tensor that does not lie whole in memory");
    }
    float* floats() const { return static_cast<float*>(data); }
    const int64_t* longs() const { return static_cast<const int64_t*>(data); }
    int64_t width() const { return sizes[ndim - 1]; }
};

struct SparsehubBatch {  // which tokens are which task's, and where each module's changes are
    SparsehubTensor tables, blocks;

    // tokens: of the op's input, each of which must be in a block
    SparsehubBatch(AtenTensorHandle all, AtenTensorHandle given, int64_t tokens) : tables(all), blocks(given) {
        const int64_t* last = blocks.longs() + blocks.numel - 3;
        if (blocks.numel < 3 || last[1] + last[2] != tokens)
            throw std::runtime_error("an op of sparsehub got tokens that are in no block");
    }
    int64_t count() const { return blocks.sizes[0]; }
    const int64_t* table(int64_t module) const { return tables.longs() + module * tables.sizes[1] * tables.sizes[2]; }
    // On an int8 base the last slot is no task's: it has the addresses of the module's own weights.
    const int64_t* int8_weights(int64_t module) const { return table(module + 1) - tables.sizes[2]; }
};

// A new float32 tensor of the sizes [first, those of x but the last, width]; without `first` where it is 0.
static AtenTensorHandle sparsehub_empty(int64_t first, const SparsehubTensor& x, int64_t ndim, int64_t width) {
    std::vector<int64_t> sizes(x.sizes, x.sizes + ndim), strides;
    sizes.push_back(width);
    if (first) sizes.insert(sizes.begin(), first);
    strides.assign(sizes.size(), 1);
    for (size_t i = sizes.size() - 1; i > 0; i--) strides[i - 1] = strides[i] * sizes[i];
    AtenTensorHandle made;
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(sizes.size(), sizes.data(), strides.data(),
                                                         aoti_torch_dtype_float32(), aoti_torch_device_type_cpu(), 0,
                                                         &made));
    return made;
}

// The memory of a tensor from an entry on, as a matrix.
static AtenTensorHandle sparsehub_matrix(const SparsehubTensor& t, int64_t from, int64_t rows, int64_t columns,
                                         bool transposed) {
    const int64_t sizes[] = {rows, columns}, strides[] = {transposed ? 1 : columns, transposed ? rows : 1};
    AtenTensorHandle made;
    AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch__reinterpret_tensor(t.handle, 2, sizes, strides, from, &made));
    return made;
}

// Of maps that share x, the fields of `Map`; y: [count, tokens, out]; biases: one for each map, or none.
static std::vector<int64_t> sparsehub_maps(const SparsehubTensor& y, int64_t out, const AtenTensorHandle* biases,
                                           int64_t biased, const SparsehubBatch& batch, const int64_t* modules) {
    std::vector<int64_t> maps;
    const int64_t count = y.sizes[0];
    for (int64_t i = 0; i < count; i++) {
        const auto bias = biased ? reinterpret_cast<int64_t>(SparsehubTensor(biases[i]).data) : 0;
        const auto own = reinterpret_cast<int64_t>(y.floats() + i * (y.numel / count));
        maps.insert(maps.end(), {out, bias, own, reinterpret_cast<int64_t>(batch.table(modules[i]))});
    }
    return maps;
}

static AOTITorchError aoti_torch_cpu_mixed_linear(AtenTensorHandle x_handle, const AtenTensorHandle* weights,
                                                  int64_t count, const AtenTensorHandle* biases, int64_t biased,
                                                  AtenTensorHandle tables, AtenTensorHandle blocks,
                                                  const int64_t* modules, int64_t, int32_t transposed,
                                                  AtenTensorHandle* result) {
    using torch::aot_inductor::RAIIAtenTensorHandle;
    const SparsehubTensor x(x_handle);
    const int64_t in = x.width(), tokens = x.numel / in, out = SparsehubTensor(weights[0]).sizes[transposed ? 1 : 0];
    const SparsehubBatch batch(tables, blocks, tokens);
    RAIIAtenTensorHandle made(sparsehub_empty(count, x, x.ndim - 1, out));
    const SparsehubTensor y(made.get());
    const std::vector<int64_t> maps = sparsehub_maps(y, out, biases, biased, batch, modules);
    sparsehub_sparse_linear(x.floats(), in, maps.data(), count, batch.blocks.longs(), batch.count());
    RAIIAtenTensorHandle rows(sparsehub_matrix(x, 0, tokens, in, false));
    for (int64_t i = 0; i < count; i++) {
        const SparsehubTensor w(weights[i]);
        float* its = y.floats() + i * tokens * out;
        if (!transposed && sparsehub_few_rows(x.floats(), tokens, in, w.floats(), nullptr, its, out, 1)) continue;
        RAIIAtenTensorHandle weight(sparsehub_matrix(w, 0, in, out, !transposed));
        RAIIAtenTensorHandle own(sparsehub_matrix(y, i * tokens * out, tokens, out, false));
        AOTI_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_addmm_out(own.get(), own.get(), rows.get(), weight.get(), 1.0, 1.0));
    }
    *result = made.release();
    return AOTI_TORCH_SUCCESS;
}

static AOTITorchError aoti_torch_cpu_int8_linear(AtenTensorHandle x_handle, const AtenTensorHandle* biases,
                                                 int64_t biased, AtenTensorHandle tables, AtenTensorHandle blocks,
                                                 const int64_t* modules, int64_t count, int64_t out,
                                                 AtenTensorHandle* result) {
    const SparsehubTensor x(x_handle);
    const int64_t in = x.width(), tokens = x.numel / in;
    const SparsehubBatch batch(tables, blocks, tokens);
    torch::aot_inductor::RAIIAtenTensorHandle made(sparsehub_empty(count, x, x.ndim - 1, out));
    const std::vector<int64_t> maps =
        sparsehub_maps(SparsehubTensor(made.get()), out, biases, biased, batch, modules);
    std::vector<int64_t> weights;
    for (int64_t i = 0; i < count; i++) {
        const int64_t* own = batch.int8_weights(modules[i]);
        weights.insert(weights.end(), own, own + 3);
    }
    sparsehub_int8_linear(x.floats(), tokens, in, maps.data(), weights.data(), count, batch.blocks.longs(),
                          batch.count());
    *result = made.release();
    return AOTI_TORCH_SUCCESS;
}

// y from an entry on, [tokens, out] = x W + bias; w: [out, in], or [in, out] where `transposed`; bias may be absent.
static void sparsehub_product(const SparsehubTensor& x, const SparsehubTensor& w, const AtenTensorHandle* bias,
                              bool transposed, const SparsehubTensor& y, int64_t from) {
    using torch::aot_inductor::RAIIAtenTensorHandle;
    const int64_t in = x.width(), tokens = x.numel / in, out = w.sizes[transposed ? 1 : 0];
    const float* added = bias ? SparsehubTensor(*bias).floats() : nullptr;
    if (!transposed && sparsehub_few_rows(x.floats(), tokens, in, w.floats(), added, y.floats() + from, out, 0)) return;
    RAIIAtenTensorHandle rows(sparsehub_matrix(x, 0, tokens, in, false));
    RAIIAtenTensorHandle weight(sparsehub_matrix(w, 0, in, out, !transposed));
    RAIIAtenTensorHandle own(sparsehub_matrix(y, from, tokens, out, false));
    AOTI_TORCH_ERROR_CODE_CHECK(bias
                                    ? aoti_torch_cpu_addmm_out(own.get(), *bias, rows.get(), weight.get(), 1.0, 1.0)
                                    : aoti_torch_cpu_mm_out(own.get(), rows.get(), weight.get()));
}

static AOTITorchError aoti_torch_cpu_shared_linear(AtenTensorHandle x_handle, AtenTensorHandle source_handle,
                                                   AtenTensorHandle rows_handle, const AtenTensorHandle* weights,
                                                   int64_t count, const AtenTensorHandle* biases, int64_t biased,
                                                   AtenTensorHandle tables, AtenTensorHandle blocks,
                                                   const int64_t* modules, int64_t module_count, int32_t transposed,
                                                   AtenTensorHandle* result) {
    using torch::aot_inductor::RAIIAtenTensorHandle;
    const SparsehubTensor x(x_handle), source(source_handle), rows(rows_handle);
    if (source.sizes[0] >= x.sizes[0])
        return aoti_torch_cpu_mixed_linear(x_handle, weights, count, biases, biased, tables, blocks, modules,
                                           module_count, transposed, result);
    const int64_t in = x.width(), tokens = x.numel / in, length = tokens / x.sizes[0];
    const int64_t out = SparsehubTensor(weights[0]).sizes[transposed ? 1 : 0];
    const SparsehubBatch batch(tables, blocks, tokens);
    if (rows.numel != x.sizes[0] || source.width() != in || source.numel != source.sizes[0] * length * in)
        throw std::runtime_error("an op of sparsehub got rows that are not made of those that it got");
    std::vector<int64_t> origins;
    for (int64_t i = 0; i < rows.numel; i++) {
        const int64_t row = rows.longs()[i];
        if (row < 0 || row >= source.sizes[0]) throw std::runtime_error("an op of sparsehub got a row of nothing");
        for (int64_t j = 0; j < length; j++) origins.push_back(row * length + j);
    }
    RAIIAtenTensorHandle made(sparsehub_empty(count, x, x.ndim - 1, out));
    RAIIAtenTensorHandle once(sparsehub_empty(count, source, source.ndim - 1, out));
    const SparsehubTensor y(made.get()), products(once.get());
    std::vector<int64_t> maps;
    for (int64_t i = 0; i < count; i++) {
        const int64_t from = i * (products.numel / count), own = i * (y.numel / count);
        sparsehub_product(source, SparsehubTensor(weights[i]), biased ? biases + i : nullptr, transposed, products, from);
        maps.insert(maps.end(), {out, reinterpret_cast<int64_t>(products.floats() + from),
                                 reinterpret_cast<int64_t>(y.floats() + own),
                                 reinterpret_cast<int64_t>(batch.table(modules[i]))});
    }
    sparsehub_shared_linear(source.floats(), in, maps.data(), count, batch.blocks.longs(), batch.count(),
                            origins.data());
    *result = made.release();
    return AOTI_TORCH_SUCCESS;
}

static AOTITorchError aoti_torch_cpu_plain_linear(AtenTensorHandle x_handle, AtenTensorHandle weight_handle,
                                                  const AtenTensorHandle* biases, int64_t biased,
                                                  AtenTensorHandle* result) {
    const SparsehubTensor x(x_handle), w(weight_handle);
    torch::aot_inductor::RAIIAtenTensorHandle made(sparsehub_empty(0, x, x.ndim - 1, w.sizes[0]));
    sparsehub_product(x, w, biased ? biases : nullptr, false, SparsehubTensor(made.get()), 0);
    *result = made.release();
    return AOTI_TORCH_SUCCESS;
}

static AOTITorchError aoti_torch_cpu_exact_gelu(AtenTensorHandle x_handle, AtenTensorHandle* result) {
    const SparsehubTensor x(x_handle);
    torch::aot_inductor::RAIIAtenTensorHandle made(sparsehub_empty(0, x, x.ndim - 1, x.width()));
    sparsehub_gelu(x.floats(), SparsehubTensor(made.get()).floats(), x.numel);
    *result = made.release();
    return AOTI_TORCH_SUCCESS;
}

static AOTITorchError aoti_torch_cpu_mixed_embedding(AtenTensorHandle ids_handle, AtenTensorHandle weight_handle,
                                                     AtenTensorHandle tables, AtenTensorHandle blocks, int64_t module,
                                                     AtenTensorHandle* result) {
    using torch::aot_inductor::RAIIAtenTensorHandle;
    const SparsehubTensor ids(ids_handle), weight(weight_handle);
    const SparsehubBatch batch(tables, blocks, ids.numel);
    RAIIAtenTensorHandle made(sparsehub_empty(0, ids, ids.ndim, weight.width()));
    if (sparsehub_embedding(ids.longs(), ids.numel, weight.floats(), weight.sizes[0], SparsehubTensor(made.get()).floats(),
                            weight.width(), batch.blocks.longs(), batch.count(), batch.table(module)))
        throw std::runtime_error("an embedding got ids that it has no row for");
    *result = made.release();
    return AOTI_TORCH_SUCCESS;
}

static AOTITorchError aoti_torch_cpu_mixed_norm(AtenTensorHandle x_handle, AtenTensorHandle tables,
                                                AtenTensorHandle blocks, int64_t module, double epsilon,
                                                int32_t centered, AtenTensorHandle* result) {
    using torch::aot_inductor::RAIIAtenTensorHandle;
    const SparsehubTensor x(x_handle);
    const SparsehubBatch batch(tables, blocks, x.numel / x.width());
    RAIIAtenTensorHandle made(sparsehub_empty(0, x, x.ndim - 1, x.width()));
    sparsehub_norm(x.floats(), SparsehubTensor(made.get()).floats(), x.width(), batch.blocks.longs(), batch.count(),
                   batch.table(module), static_cast<float>(epsilon), centered);
    *result = made.release();
    return AOTI_TORCH_SUCCESS;
}
