// SPDX-License-Identifier: Apache-2.0
// Suffix index: constant-time append, and best-first growth of a tree of continuations.
#include "suffix_index.h"

#include <algorithm>
#include <cstdio>
#include <queue>
#include <stdexcept>
#include <string>

namespace pyspec {
namespace {

constexpr size_t kLongerGrams[] = {3, 8};

int64_t checked(const char* where, const char* argument, int64_t value, int64_t low, int64_t high) {
  if (value < low || value > high) {
    throw std::invalid_argument(std::string(where) + ": " + argument + " must be in [" + std::to_string(low) +
                                ", " + std::to_string(high) + "], got " + std::to_string(value));
  }
  return value;
}

uint64_t hash_gram(const int32_t* gram, size_t size) {
  uint64_t hash = 0x9e3779b97f4a7c15u;
  for (size_t i = 0; i < size; ++i) {
    hash = (hash ^ static_cast<uint32_t>(gram[i])) * 0xff51afd7ed558ccdu;
    hash ^= hash >> 32;
  }
  return hash;
}

// A node that may be drafted: the continuation of `parent` with `token`, followed by a range of the arena.
struct Candidate {
  double score;
  size_t pushed;
  size_t parent;
  int32_t token;
  size_t begin;
  size_t count;
};

struct Worse {
  bool operator()(const Candidate& a, const Candidate& b) const {
    return a.score != b.score ? a.score < b.score : a.pushed > b.pushed;
  }
};

}  // namespace

SuffixIndex::SuffixIndex(int64_t min_match, int64_t max_match, int64_t max_candidates, int64_t max_tokens) {
  checked("SuffixIndex", "min_match", min_match, 1, 16);
  max_match_ = static_cast<uint32_t>(checked("SuffixIndex", "max_match", max_match, min_match, kMaxMatch));
  max_candidates_ = static_cast<uint32_t>(checked("SuffixIndex", "max_candidates", max_candidates, 1, 4096));
  max_tokens_ = static_cast<size_t>(checked("SuffixIndex", "max_tokens", max_tokens, 16, int64_t{1} << 30));
  grams_.push_back({static_cast<size_t>(min_match), 0, std::vector<uint32_t>(64), {}});
  for (size_t size : kLongerGrams) {
    if (size > static_cast<size_t>(min_match) && size <= max_match_) {
      grams_.push_back({size, 0, std::vector<uint32_t>(64), {}});
    }
  }
}

void SuffixIndex::append(const int32_t* tokens, size_t num_tokens) {
  for (size_t i = 0; i < num_tokens; ++i) {
    if (tokens[i] < 0) {
      throw std::invalid_argument("SuffixIndex.append: tokens must be in [0, 2**31), got tokens[" +
                                  std::to_string(i) + "] = " + std::to_string(tokens[i]));
    }
  }
  for (size_t i = 0; i < num_tokens; ++i) push(tokens[i]);
}

void SuffixIndex::push(int32_t token) {
  if (text_.size() >= max_tokens_) forget_older_half();
  text_.push_back(token);
  run_ = token == kSeparator ? 0 : run_ + 1;
  for (Grams& grams : grams_) {
    grams.previous.push_back(0);
    if (run_ >= grams.size) insert(grams);
  }
}

void SuffixIndex::forget_older_half() {
  const std::vector<int32_t> kept(text_.end() - static_cast<ptrdiff_t>(max_tokens_ / 2), text_.end());
  text_.clear();
  run_ = 0;
  for (Grams& grams : grams_) grams = {grams.size, 0, std::vector<uint32_t>(64), {}};
  for (int32_t token : kept) push(token);
}

// The slot of a gram: the one whose head's tokens are equal, else the empty one where it belongs.
size_t SuffixIndex::slot(const Grams& grams, const int32_t* gram) const {
  const size_t mask = grams.heads.size() - 1;
  size_t at = hash_gram(gram, grams.size) & mask;
  while (grams.heads[at] != 0 &&
         !std::equal(gram, gram + grams.size, text_.data() + grams.heads[at] - grams.size)) {
    at = (at + 1) & mask;
  }
  return at;
}

// Makes the gram that ends the text the head of its chain.
void SuffixIndex::insert(Grams& grams) {
  uint32_t& head = grams.heads[slot(grams, text_.data() + text_.size() - grams.size)];
  const bool is_new = head == 0;
  grams.previous.back() = head;
  head = static_cast<uint32_t>(text_.size());
  if (is_new && 2 * ++grams.num_heads > grams.heads.size()) grow(grams);
}

void SuffixIndex::grow(Grams& grams) {
  const std::vector<uint32_t> heads = std::move(grams.heads);
  grams.heads.assign(2 * heads.size(), 0);
  for (uint32_t head : heads) {
    if (head != 0) grams.heads[slot(grams, text_.data() + head - grams.size)] = head;
  }
}

// Occurrences of suffixes of the context (text and root): longest class first, newest first.
std::vector<SuffixIndex::Occurrence> SuffixIndex::occurrences(int32_t root) const {
  const size_t kept = std::min<size_t>(text_.size(), max_match_);
  std::vector<int32_t> context(text_.end() - static_cast<ptrdiff_t>(kept), text_.end());
  context.push_back(root);
  std::vector<Occurrence> found;
  uint32_t least_found = max_match_ + 1;
  for (auto grams = grams_.rbegin(); grams != grams_.rend(); ++grams) {
    if (context.size() < grams->size) continue;
    uint32_t end = grams->heads[slot(*grams, context.data() + context.size() - grams->size)];
    for (uint32_t tried = 0; end != 0 && tried < max_candidates_; ++tried) {
      const size_t limit = std::min({size_t{end}, context.size(), size_t{max_match_}});
      uint32_t match = 0;
      while (match < limit && text_[end - 1 - match] == context[context.size() - 1 - match] &&
             text_[end - 1 - match] != kSeparator) {
        ++match;
      }
      if (match < least_found) found.push_back({end, match});
      end = grams->previous[end - 1];
    }
    least_found = static_cast<uint32_t>(grams->size);
  }
  return found;
}

SuffixProposal SuffixIndex::propose(int64_t root, int64_t budget, int64_t max_depth,
                                    double min_probability) const {
  checked("SuffixIndex.propose", "root", root, 0, INT32_MAX);
  checked("SuffixIndex.propose", "budget", budget, 1, kMaxNodes);
  checked("SuffixIndex.propose", "max_depth", max_depth, 0, kMaxNodes);
  if (!(min_probability >= 0 && min_probability <= 1)) {
    char value[32];
    std::snprintf(value, sizeof value, "%g", min_probability);
    throw std::invalid_argument("SuffixIndex.propose: min_probability must be in [0, 1], got " +
                                std::string(value));
  }
  struct Item {
    int32_t token;
    size_t order;
    Occurrence occurrence;
  };
  struct Group {
    int64_t weight;
    size_t order;  // of the newest occurrence
    size_t begin;
    size_t end;
  };
  SuffixProposal tree{{static_cast<int32_t>(root)}, {-1}, {1.0f}};
  std::vector<int64_t> depths{0};
  std::vector<double> scores{1.0};
  std::vector<Occurrence> arena = occurrences(static_cast<int32_t>(root));
  std::priority_queue<Candidate, std::vector<Candidate>, Worse> heap;
  std::vector<Item> items;
  std::vector<Group> groups;
  std::vector<int32_t> path;  // tokens from the root to the node
  size_t pushed = 0;
  size_t node = 0, begin = 0, count = arena.size();
  while (true) {
    const int64_t depth = depths[node];
    if (depth < max_depth) {
      path.resize(static_cast<size_t>(depth) + 1);
      for (int64_t d = depth, n = static_cast<int64_t>(node); d >= 0; --d, n = tree.parents[n]) {
        path[static_cast<size_t>(d)] = tree.tokens[static_cast<size_t>(n)];
      }
      items.clear();
      for (size_t i = begin; i < begin + count; ++i) {
        const size_t at = arena[i].end + static_cast<size_t>(depth);
        const int32_t token = at < text_.size() ? text_[at] : path[at - text_.size()];
        if (token != kSeparator) items.push_back({token, i, arena[i]});
      }
      std::sort(items.begin(), items.end(), [](const Item& a, const Item& b) {
        return a.token != b.token ? a.token < b.token : a.order < b.order;
      });
      groups.clear();
      int64_t total = 0;
      for (size_t i = 0; i < items.size(); ++i) {
        if (i == 0 || items[i].token != items[i - 1].token) groups.push_back({0, items[i].order, i, i});
        const int64_t matched = std::min<int64_t>(items[i].occurrence.match + depth, max_match_);
        groups.back().weight += matched * matched;
        groups.back().end = i + 1;
        total += matched * matched;
      }
      std::sort(groups.begin(), groups.end(), [](const Group& a, const Group& b) {
        return a.weight != b.weight ? a.weight > b.weight : a.order < b.order;
      });
      for (const Group& group : groups) {
        const double share = static_cast<double>(group.weight) / static_cast<double>(total + kEscape);
        const double score = scores[node] * share;
        if (!(score >= min_probability)) continue;
        heap.push({score, pushed++, node, items[group.begin].token, arena.size(), group.end - group.begin});
        for (size_t i = group.begin; i < group.end; ++i) arena.push_back(items[i].occurrence);
      }
    }
    if (heap.empty() || tree.tokens.size() == static_cast<size_t>(budget)) return tree;
    const Candidate best = heap.top();
    heap.pop();
    node = tree.tokens.size();
    begin = best.begin;
    count = best.count;
    tree.tokens.push_back(best.token);
    tree.parents.push_back(static_cast<int32_t>(best.parent));
    tree.probability.push_back(static_cast<float>(best.score));
    depths.push_back(depths[best.parent] + 1);
    scores.push_back(best.score);
  }
}

}  // namespace pyspec
