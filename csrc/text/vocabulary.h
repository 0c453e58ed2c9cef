// A vocabulary of byte-pair encoding as it lies in a file: tokens and merges, each string as its length (u64) and its
// bytes (UTF-8). Finds the part of it that a text can need.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

namespace octavo {

// Strings one behind the other, in memory that somebody else keeps.
class Strings {
public:
    // Throws std::invalid_argument where `data` is not exactly `count` strings.
    Strings(std::string_view data, std::size_t count);

    std::size_t size() const { return starts_.size(); }
    std::string_view operator[](std::size_t index) const { return {starts_[index], lengths_[index]}; }

private:
    std::vector<const char*> starts_;
    std::vector<std::uint32_t> lengths_;
};

class Vocabulary {
public:
    using Merge = std::pair<std::string_view, std::string_view>;

    // Throws std::invalid_argument where a token is empty, no UTF-8 or there twice, or where a merge ("left right"; the
    // first character is left's, even a space) joins or makes what is no token.
    Vocabulary(std::string_view tokens, std::size_t num_tokens, std::string_view merges, std::size_t num_merges);

    std::size_t num_tokens() const { return tokens_.size(); }
    std::size_t num_merges() const { return merges_.size(); }
    std::string_view token(std::size_t id) const { return tokens_[id]; }
    Merge merge(std::size_t rank) const;
    std::int64_t id_of(std::string_view token) const;  // -1: there is none

    // Ids of the tokens that occur in `text`, ascending: whatever its words are merged to is among them.
    std::vector<std::uint32_t> tokens_in(std::string_view text) const;
    // Ranks of the merges that make one of `tokens`, ascending.
    std::vector<std::uint32_t> merges_to(const std::vector<std::uint32_t>& tokens) const;

private:
    void add_token(std::size_t id);
    std::size_t place_of(std::string_view left, std::string_view right, std::uint64_t hash) const;

    Strings tokens_, merges_;
    std::vector<std::int32_t> table_;  // id, -1: none; open addressing, at most half full
    std::size_t longest_ = 0;
    std::vector<std::uint32_t> made_;  // by each merge, and where its left side ends
    std::vector<std::uint32_t> cuts_;
};

}  // namespace octavo
