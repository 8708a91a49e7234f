// SPDX-License-Identifier: Apache-2.0
// Suffix index over the tokens of one request; the formula and the judge are
// pyspec/drafts/suffix_reference.py.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace pyspec {

struct SuffixProposal {
  std::vector<int32_t> tokens;     // [T], node 0 is the root
  std::vector<int32_t> parents;    // [T], -1 for the root, parents[i] < i
  std::vector<float> probability;  // [T], of the whole path, never increasing
};

// Every token ends one run ("gram") of each of up to three sizes. Equal grams form a chain from the newest
// end to the oldest, and an open-addressing table holds the head of each chain: appending is O(1), about 40
// bytes a token.
class SuffixIndex {
 public:
  static constexpr int64_t kMaxMatch = 64;
  static constexpr int64_t kMaxNodes = 1024;

  // Arguments as in the reference; throws std::invalid_argument naming the first bad one.
  SuffixIndex(int64_t min_match, int64_t max_match, int64_t max_candidates, int64_t max_tokens);

  size_t size() const { return text_.size(); }
  void append(const int32_t* tokens, size_t num_tokens);  // all or, if one is negative, none
  void end_document() { push(kSeparator); }
  SuffixProposal propose(int64_t root, int64_t budget, int64_t max_depth, double min_probability) const;

 private:
  static constexpr int32_t kSeparator = -1;
  static constexpr int64_t kEscape = 8;

  struct Grams {
    size_t size;                     // tokens of a gram
    size_t num_heads = 0;            // distinct grams
    std::vector<uint32_t> heads;     // hash table: newest end of a gram, 0 for an empty slot
    std::vector<uint32_t> previous;  // [text]: the end before end i + 1 of the same gram, 0 for none
  };
  struct Occurrence {
    uint32_t end;    // index of the token after the match
    uint32_t match;  // tokens that match
  };

  void push(int32_t token);
  void forget_older_half();
  void insert(Grams& grams);
  void grow(Grams& grams);
  size_t slot(const Grams& grams, const int32_t* gram) const;
  std::vector<Occurrence> occurrences(int32_t root) const;

  uint32_t max_match_;
  uint32_t max_candidates_;
  size_t max_tokens_;
  size_t run_ = 0;  // tokens since the last separator
  std::vector<int32_t> text_;
  std::vector<Grams> grams_;  // shortest first
};

}  // namespace pyspec
