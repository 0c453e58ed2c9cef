// Holds the functions of simd/dot_bf16.h and simd/amx_tiles.h, the processor's or the stand-ins, against what an Emerald
// Rapids gave (amx_bits.bin and denormals.bin; record_bits.cpp made them and tells the format). For every way to compute
// them it prints how many outputs there are and how many differ (a NaN is as good as another):
//   hold_bits FILE.bin WAYS        (WAYS: "pairs", "tiles" or both)
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "simd/avx512.h"

#include "simd/dot_vnni_avx512.h"

#include "simd/amx_tiles.h"
#include "simd/dot_bf16.h"

#include "kernels/gemm_tiles_bf16.h"

#if defined(__AMX_TILE__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

using namespace octavo;

using Words = std::vector<std::uint16_t>;

struct Record {
    std::int32_t kind, input_class, rows, steps;  // kind 0: tdpbf16ps, 1: vdpbf16ps
    Words a, b;                                   // [rows, inputs], [16 columns, inputs]
    std::vector<float> sums;                      // [rows, 16]
    int inputs() const { return steps * kTileInputs; }
    std::size_t at(int row, int input) const { return static_cast<std::size_t>(row * inputs() + input); }
    // Pairs of inputs, one pair of `columns` columns side by side: the 16 there are, over and over.
    std::vector<std::uint32_t> pairs(int columns) const {
        std::vector<std::uint32_t> to(static_cast<std::size_t>(inputs() / 2 * columns));
        for (int i = 0; i < inputs() / 2; ++i)
            for (int n = 0; n < columns; ++n)
                to[static_cast<std::size_t>(i * columns + n)] = load_as<std::uint32_t>(&b[at(n % 16, 2 * i)]);
        return to;
    }
};

template <class T>
bool read(std::FILE* file, std::vector<T>& to, int count) {
    to.resize(static_cast<std::size_t>(count));
    return std::fread(to.data(), sizeof(T), to.size(), file) == to.size();
}

std::vector<Record> read_records(const char* path) {
    std::FILE* file = std::fopen(path, "rb");
    if (file == nullptr) std::exit(2);
    std::vector<Record> records;
    std::int32_t head[4];
    while (std::fread(head, sizeof head, 1, file) == 1) {
        Record record{head[0], head[1], head[2], head[3], {}, {}, {}};
        const int inputs = record.inputs();
        if (!read(file, record.a, record.rows * inputs) || !read(file, record.b, 16 * inputs) ||
            !read(file, record.sums, record.rows * 16))
            std::exit(2);
        records.push_back(record);
    }
    std::fclose(file);
    return records;
}

// Outputs that are not the recorded ones; got: [rows, stride].
int differing(const Record& record, const float* got, int stride) {
    int count = 0;
    for (int row = 0; row < record.rows; ++row)
        for (int n = 0; n < 16; ++n) {
            const float x = got[row * stride + n], y = record.sums[static_cast<std::size_t>(row * 16 + n)];
            if (x != x && y != y) continue;
            if (std::memcmp(&x, &y, sizeof x) != 0) ++count;
        }
    return count;
}

int by_pairs(const Record& record) {
    const auto pairs = record.pairs(16);
    std::vector<float> got(record.sums.size());
    for (int row = 0; row < record.rows; ++row) {
        vf sums{};
        for (int i = 0; i < record.inputs() / 2; ++i) {
            const auto x = load_as<std::uint32_t>(&record.a[record.at(row, 2 * i)]);
            sums = dot_pairs(sums, x, load_as<vu>(&pairs[static_cast<std::size_t>(i * 16)]));
        }
        store(&got[static_cast<std::size_t>(row * 16)], sums);
    }
    return differing(record, got.data(), 16);
}

int by_tiles(const Record& record) {
    const auto pairs = record.pairs(16);
    std::vector<float> got(record.sums.size());
    configure(record.rows, 0, 64);
    tile_zero<0>();
    for (int step = 0; step < record.steps; ++step) {
        tile_load<4>(&record.a[record.at(0, step * kTileInputs)], record.inputs() * 2);
        tile_load<6>(&pairs[static_cast<std::size_t>(step * kTileInputs / 2 * 16)], 64);
        tile_products_bf16<0, 4, 6>();
    }
    tile_store<0>(got.data(), 64);
    release();
    return differing(record, got.data(), 16);
}

// As the kernel has it: two tiles of columns, and the same rows once more behind a first tile of kTileRows rows.
int by_products(const Record& record) {
    const auto pairs = record.pairs(kTileColumns);
    int count = 0;
    for (int before : {0, kTileRows}) {
        const int num_rows = before + record.rows;
        Words packed(record.at(num_rows, 0));
        for (int row = 0; row < num_rows; ++row) {
            const int first = row / kTileRows * kTileRows;
            const TileInputs tiles = tiles_of(packed.data(), first, num_rows, record.inputs());
            const int from = row < before ? row % record.rows : row - before;
            for (int step = 0; step < record.steps; ++step)
                std::memcpy(&packed[static_cast<std::size_t>(tiles.at - packed.data() + step * tiles.step) +
                                    static_cast<std::size_t>((row - first) * kTileInputs)],
                            &record.a[record.at(from, step * kTileInputs)], kTileInputs * 2);
        }
        std::vector<float> got(static_cast<std::size_t>(num_rows * kPanel));
        ProductArgs args{};
        args.panel.data = pairs.data();
        args.packed = packed.data();
        args.scratch = got.data();
        args.stride = kPanel;
        args.total_rows = args.num_rows = num_rows;
        args.num_in = args.padded_in = record.inputs();
        product_tiles(args);
        const float* last = got.data() + before * kPanel;
        for (int half : {0, 16}) count += differing(record, last + half, kPanel);
    }
    return count;
}

void hold(const std::vector<Record>& records, const char* name, int kind, int (*way)(const Record&)) {
    int outputs = 0, wrong = 0;
    for (const Record& record : records)
        if (record.kind == kind) outputs += static_cast<int>(record.sums.size()), wrong += way(record);
    std::printf("%s %d %d\n", name, outputs, wrong);
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 3) return 2;
    const std::vector<Record> records = read_records(argv[1]);
    if (std::strstr(argv[2], "pairs") != nullptr) hold(records, "dot_pairs", 1, by_pairs);
    if (std::strstr(argv[2], "tiles") != nullptr) {
#if defined(__AMX_TILE__)
        if (syscall(SYS_arch_prctl, 0x1023, 18) != 0) return 3;  // Linux: may this process use tiles?
#endif
        hold(records, "tiles", 0, by_tiles);
        hold(records, "product_tiles", 0, by_products);
    }
}
