#include "core/gather.h"

#include <algorithm>
#include <numeric>

namespace semisparse {

void Gatherer::add_present(int64_t source, uint32_t place) { present_.try_emplace(source, place); }

void Gatherer::add(int64_t source, uint32_t from, uint32_t dest) {
  if (source < 0) {
    gather_.blank.push_back({0, dest});
    return;
  }
  if (const auto found = present_.find(source); found != present_.end()) {
    gather_.copies.push_back({found->second, dest});
    return;
  }
  const auto [entry, first] =
      entries_.try_emplace(source, static_cast<uint32_t>(gather_.from.size()));
  if (first) {
    gather_.from.push_back(from);
    gather_.dest.push_back(dest);
  } else {
    copies_.push_back({entry->second, dest});
  }
}

Gather Gatherer::finish() {
  std::stable_sort(
      copies_.begin(), copies_.end(),
      [](const epilogue::Pair& a, const epilogue::Pair& b) { return a.source < b.source; });
  gather_.copy_begin.assign(gather_.from.size() + 1, 0);
  gather_.copy_begin[0] = static_cast<uint32_t>(gather_.copies.size());
  for (const epilogue::Pair& copy : copies_) {
    gather_.copies.push_back({gather_.dest[copy.source], copy.dest});
    ++gather_.copy_begin[copy.source + 1];
  }
  std::partial_sum(gather_.copy_begin.begin(), gather_.copy_begin.end(),
                   gather_.copy_begin.begin());
  return std::move(gather_);
}

}  // namespace semisparse
