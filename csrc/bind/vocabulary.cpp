// Python's way to csrc/text/vocabulary.h.

#include <nanobind/nanobind.h>

#include <cstdint>
#include <stdexcept>
#include <string_view>
#include <vector>

#include "text/vocabulary.h"

namespace nb = nanobind;
using namespace nb::literals;
using octavo::Vocabulary;

namespace {

std::string_view view_of(const nb::bytes& bytes) { return {bytes.c_str(), bytes.size()}; }

nb::object text_of(std::string_view text) {
    PyObject* made = PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()), nullptr);
    if (made == nullptr) throw nb::python_error();
    return nb::steal(made);
}

// A vocabulary and the bytes that it lies in.
struct Held {
    nb::bytes tokens, merges;
    Vocabulary vocabulary;

    Held(const nb::bytes& tokens, std::size_t num_tokens, const nb::bytes& merges, std::size_t num_merges)
        : tokens(tokens), merges(merges), vocabulary(view_of(tokens), num_tokens, view_of(merges), num_merges) {}
};

nb::tuple merge_of(const Vocabulary& vocabulary, std::size_t rank) {
    const auto [left, right] = vocabulary.merge(rank);
    return nb::make_tuple(text_of(left), text_of(right));
}

nb::tuple part(const Held& self, const nb::bytes& text) {
    const std::vector<std::uint32_t> ids = self.vocabulary.tokens_in(view_of(text));
    nb::dict tokens;
    for (const std::uint32_t id : ids) tokens[text_of(self.vocabulary.token(id))] = id;
    nb::list merges;
    for (const std::uint32_t rank : self.vocabulary.merges_to(ids)) merges.append(merge_of(self.vocabulary, rank));
    return nb::make_tuple(tokens, merges);
}

nb::tuple whole(const Held& self) {
    nb::dict tokens;
    for (std::size_t id = 0; id < self.vocabulary.num_tokens(); ++id) tokens[text_of(self.vocabulary.token(id))] = id;
    nb::list merges;
    for (std::size_t rank = 0; rank < self.vocabulary.num_merges(); ++rank)
        merges.append(merge_of(self.vocabulary, rank));
    return nb::make_tuple(tokens, merges);
}

}  // namespace

NB_MODULE(_vocabulary, m) {
    m.doc() = "Vocabularies of byte-pair encoding, as they lie in a file; see octavo.text.vocabulary.";
    nb::class_<Held>(m, "Vocabulary", "Tokens and merges: strings as their length (u64) and their bytes.")
        .def(nb::init<const nb::bytes&, std::size_t, const nb::bytes&, std::size_t>(), "tokens"_a, "num_tokens"_a,
             "merges"_a, "num_merges"_a)
        .def("token",
             [](const Held& self, std::size_t id) {
                 if (id >= self.vocabulary.num_tokens()) throw nb::index_error("there is no such token");
                 return text_of(self.vocabulary.token(id));
             })
        .def("id_of", [](const Held& self, const nb::bytes& token) { return self.vocabulary.id_of(view_of(token)); },
             "The id of a token, -1 if there is none.")
        .def("part", &part, "text"_a, "The tokens that occur in `text`, with their ids, and the merges that make them.")
        .def("whole", &whole, "All tokens with their ids, and all merges.");
}
