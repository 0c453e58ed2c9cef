// A hash table of all tokens, and for each merge the token that it makes.

#include "text/vocabulary.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <stdexcept>

namespace octavo {

namespace {

// FNV-1a, a byte at a time.
constexpr std::uint64_t kHashOfNothing = 0xcbf29ce484222325u;

std::uint64_t hash_with(std::uint64_t hash, char byte) {
    return (hash ^ static_cast<unsigned char>(byte)) * 0x100000001b3u;
}

std::uint64_t hash_with(std::uint64_t hash, std::string_view text) {
    for (const char byte : text) hash = hash_with(hash, byte);
    return hash;
}

std::uint64_t hash_of(std::string_view text) { return hash_with(kHashOfNothing, text); }

// Bytes of the character whose first byte is `first`; 0 for what begins none.
std::size_t char_bytes(unsigned char first) {
    if (first < 0x80) return 1;
    if (first < 0xc2) return 0;
    return first < 0xe0 ? 2 : first < 0xf0 ? 3 : first < 0xf5 ? 4 : 0;
}

bool is_utf8(std::string_view text) {
    for (std::size_t at = 0; at < text.size();) {
        const auto first = static_cast<unsigned char>(text[at]);
        const std::size_t bytes = char_bytes(first);
        if (bytes == 0 || bytes > text.size() - at) return false;
        for (std::size_t i = 1; i < bytes; ++i)
            if ((static_cast<unsigned char>(text[at + i]) & 0xc0) != 0x80) return false;
        const auto second = static_cast<unsigned char>(bytes > 1 ? text[at + 1] : 0);
        // Longer than need be, a surrogate, beyond U+10FFFF.
        if ((first == 0xe0 && second < 0xa0) || (first == 0xed && second > 0x9f) || (first == 0xf0 && second < 0x90) ||
            (first == 0xf4 && second > 0x8f))
            return false;
        at += bytes;
    }
    return true;
}

void check(bool holds, const char* what) {
    if (!holds) throw std::invalid_argument(what);
}

}  // namespace

Strings::Strings(std::string_view data, std::size_t count) {
    check(count <= data.size() / 8, "there are fewer strings");
    starts_.reserve(count);
    lengths_.reserve(count);
    std::size_t at = 0;
    for (std::size_t i = 0; i < count; ++i) {
        std::uint64_t length = 0;
        check(data.size() - at >= 8, "there are fewer strings");
        std::memcpy(&length, data.data() + at, 8);
        at += 8;
        check(length <= data.size() - at && length <= std::numeric_limits<std::uint32_t>::max(), "a string is cut off");
        starts_.push_back(data.data() + at);
        lengths_.push_back(static_cast<std::uint32_t>(length));
        at += static_cast<std::size_t>(length);
    }
    check(at == data.size(), "there are more strings");
}

Vocabulary::Vocabulary(std::string_view tokens, std::size_t num_tokens, std::string_view merges,
                       std::size_t num_merges)
    : tokens_(tokens, num_tokens), merges_(merges, num_merges) {
    check(num_tokens < (std::size_t{1} << 30), "there are too many tokens");
    std::size_t places = 16;
    while (places < 2 * num_tokens) places *= 2;
    table_.assign(places, -1);
    for (std::size_t id = 0; id < num_tokens; ++id) add_token(id);
    made_.reserve(num_merges);
    cuts_.reserve(num_merges);
    for (std::size_t rank = 0; rank < num_merges; ++rank) {
        const std::string_view line = merges_[rank];
        check(!line.empty() && char_bytes(static_cast<unsigned char>(line[0])) > 0, "a merge is empty");
        const std::size_t cut = line.find(' ', char_bytes(static_cast<unsigned char>(line[0])));
        check(cut != std::string_view::npos, "a merge has no right side");
        cuts_.push_back(static_cast<std::uint32_t>(cut));
        const auto [left, right] = merge(rank);
        const std::uint64_t hash = hash_of(left);
        const std::int32_t made = table_[place_of(left, right, hash_with(hash, right))];
        check(made >= 0 && table_[place_of(left, {}, hash)] >= 0 && id_of(right) >= 0, "a merge is not of tokens");
        made_.push_back(static_cast<std::uint32_t>(made));
    }
}

void Vocabulary::add_token(std::size_t id) {
    const std::string_view token = tokens_[id];
    check(!token.empty() && is_utf8(token), "a token is empty or no UTF-8");
    const std::size_t place = place_of(token, {}, hash_of(token));
    check(table_[place] < 0, "a token is there twice");
    table_[place] = static_cast<std::int32_t>(id);
    longest_ = std::max(longest_, token.size());
}

// Where the token of two parts is, or would be. `hash` is that of both.
std::size_t Vocabulary::place_of(std::string_view left, std::string_view right, std::uint64_t hash) const {
    const auto differs = [&](std::string_view token) {
        return token.size() != left.size() + right.size() || token.substr(0, left.size()) != left ||
               token.substr(left.size()) != right;
    };
    std::size_t place = static_cast<std::size_t>(hash ^ hash >> 29) & (table_.size() - 1);
    while (table_[place] >= 0 && differs(tokens_[static_cast<std::size_t>(table_[place])]))
        place = (place + 1) & (table_.size() - 1);
    return place;
}

std::int64_t Vocabulary::id_of(std::string_view token) const {
    return table_[place_of(token, {}, hash_of(token))];
}

Vocabulary::Merge Vocabulary::merge(std::size_t rank) const {
    const std::string_view line = merges_[rank];
    return {line.substr(0, cuts_[rank]), line.substr(cuts_[rank] + 1)};
}

std::vector<std::uint32_t> Vocabulary::tokens_in(std::string_view text) const {
    std::vector<std::uint32_t> found;
    for (std::size_t first = 0; first < text.size(); ++first) {
        const std::size_t most = std::min(longest_, text.size() - first);
        std::uint64_t hash = kHashOfNothing;
        for (std::size_t length = 1; length <= most; ++length) {
            hash = hash_with(hash, text[first + length - 1]);
            const std::int32_t id = table_[place_of(text.substr(first, length), {}, hash)];
            if (id >= 0) found.push_back(static_cast<std::uint32_t>(id));
        }
    }
    std::sort(found.begin(), found.end());
    found.erase(std::unique(found.begin(), found.end()), found.end());
    return found;
}

std::vector<std::uint32_t> Vocabulary::merges_to(const std::vector<std::uint32_t>& tokens) const {
    std::vector<bool> is_wanted(tokens_.size());
    for (const std::uint32_t id : tokens) is_wanted[id] = true;
    std::vector<std::uint32_t> ranks;
    for (std::size_t rank = 0; rank < made_.size(); ++rank)
        if (is_wanted[made_[rank]]) ranks.push_back(static_cast<std::uint32_t>(rank));
    return ranks;
}

}  // namespace octavo
