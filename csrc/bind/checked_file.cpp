// Python's way to csrc/weights/checked_file.h: pieces are arrays of bytes, checksums a string of bytes.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "core/context.h"
#include "weights/checked_file.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace octavo;

void bind_checked_file(nb::module_& m);

namespace {

using Bytes = nb::ndarray<std::uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

FilePiece piece_of(const Bytes& bytes, std::int64_t offset) {
    return {reinterpret_cast<char*>(bytes.data()), static_cast<std::int64_t>(bytes.size()), offset};
}

nb::bytes checksums(ExecutionContext& context, const std::vector<Bytes>& arrays) {
    std::vector<FilePiece> pieces;
    for (const Bytes& bytes : arrays) pieces.push_back(piece_of(bytes, 0));
    std::vector<std::uint64_t> sums(static_cast<std::size_t>(num_chunks(pieces)));
    {
        const nb::gil_scoped_release unlocked;
        take_checksums(context.pool, pieces, sums.data());
    }
    return nb::bytes(sums.data(), sums.size() * sizeof(std::uint64_t));
}

bool read_all(ExecutionContext& context, int descriptor, const std::vector<std::tuple<Bytes, std::int64_t>>& arrays,
              const nb::bytes& sums) {
    std::vector<FilePiece> pieces;
    for (const auto& [bytes, offset] : arrays) pieces.push_back(piece_of(bytes, offset));
    std::vector<std::uint64_t> expected(static_cast<std::size_t>(num_chunks(pieces)));
    if (sums.size() != expected.size() * sizeof(std::uint64_t))
        throw std::invalid_argument("read_checked: not one checksum a chunk");
    if (!expected.empty()) std::memcpy(expected.data(), sums.data(), sums.size());
    const nb::gil_scoped_release unlocked;
    return read_checked(context.pool, descriptor, pieces, expected.data());
}

}  // namespace

void bind_checked_file(nb::module_& m) {
    m.def("checksums", &checksums, "context"_a, "arrays"_a, "The checksum of every chunk of the arrays, 8 bytes each.");
    m.def("read_checked", &read_all, "context"_a, "descriptor"_a, "arrays"_a, "sums"_a,
          "Fills (array, offset in the file) on all threads; whether all was there and has the checksums.");
}
