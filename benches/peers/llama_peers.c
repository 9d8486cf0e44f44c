/* Times llama.cpp's products of a vector with quantized weights, on the shape of `cargo bench -- gemv`, on a CPU.
 *
 * LLAMA_CPP is a checkout of llama.cpp, or vendor/llama.cpp in the source package of PyPI's llama-cpp-python:
 *
 *     cmake -S LLAMA_CPP/ggml -B build -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF -DGGML_OPENMP=OFF \
 *         -DGGML_BUILD_TESTS=OFF -DGGML_BUILD_EXAMPLES=OFF      # and an empty ggml/ggml.pc.in, which the package lacks
 *     cmake --build build --target ggml
 *     cc -O2 -I LLAMA_CPP/ggml/include benches/peers/llama_peers.c -o llama_peers \
 *         build/src/libggml.a build/src/libggml-cpu.a build/src/libggml-base.a -lstdc++ -lm -lpthread
 *     ./llama_peers 2 > target/peers/llama.json
 *
 * Prints a JSON line for each measurement: group, name and median milliseconds. A graph multiplies one vector with several copies
 * of the weights, larger than the caches together, as in the other benchmarks. llama.cpp quantizes the vector to 8 bits. */

#include "ggml-backend.h"
#include "ggml-cpu.h"
#include "ggml.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SIDE = 8192, MOST_TIMES = 4096 };
static const size_t CACHES = (size_t)1 << 29;

static int compare(const void * a, const void * b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void measure(enum ggml_type type, const char * name, int threads) {
    const size_t bytes = ggml_row_size(type, SIDE) * SIDE;
    const int count = (int)((CACHES + bytes - 1) / bytes);
    const size_t room = (size_t)count * (bytes + SIDE * sizeof(float) + 4096) + (64 << 20);
    struct ggml_init_params params = {.mem_size = room, .mem_buffer = NULL, .no_alloc = false};
    struct ggml_context * context = ggml_init(params);
    struct ggml_tensor * x = ggml_new_tensor_2d(context, GGML_TYPE_F32, SIDE, 1);
    float * row = malloc(SIDE * sizeof(float));
    for (int i = 0; i < SIDE; i++) {
        row[i] = (float)(i * 7919 % 2003) / 1000.0f - 1.0f;
    }
    memcpy(x->data, row, SIDE * sizeof(float));
    struct ggml_cgraph * graph = ggml_new_graph(context);
    for (int copy = 0; copy < count; copy++) {
        struct ggml_tensor * weight = ggml_new_tensor_2d(context, type, SIDE, SIDE);
        for (int i = 0; i < SIDE; i++) {
            ggml_quantize_chunk(type, row, (char *)weight->data + i * ggml_row_size(type, SIDE), 0, 1, SIDE, NULL);
        }
        ggml_build_forward_expand(graph, ggml_mul_mat(context, weight, x));
    }
    double times[MOST_TIMES], total = 0;
    int done = 0;
    for (int run = 0; run < MOST_TIMES && (run < 13 || total < 1.5e6); run++) {
        const int64_t before = ggml_time_us();
        ggml_graph_compute_with_ctx(context, graph, threads);
        const double time = (double)(ggml_time_us() - before);
        if (run >= 3) {
            times[done++] = time;
            total += time;
        }
    }
    qsort(times, done, sizeof(double), compare);
    printf("{\"group\": \"gemv/%dx%d\", \"name\": \"llama.cpp %s\", \"ms\": %f}\n", SIDE, SIDE, name,
           times[done / 2] / 1e3 / count);
    fflush(stdout);
    free(row);
    ggml_free(context);
}

int main(int argc, char ** argv) {
    const int threads = argc > 1 ? atoi(argv[1]) : 2;
    ggml_time_init();
    measure(GGML_TYPE_Q8_0, "Q8_0", threads);
    measure(GGML_TYPE_Q4_0, "Q4_0", threads);
    return 0;
}
