// What the depthwise kernels have in common: blocks of channels, and what begins and ends the sums
// of some positions.
#pragma once

#include "kernels/dwconv/dwconv.h"

namespace semisparse::dwconv {
namespace {

// The lanes of a block's last vector: all of them, or the first few.
template <bool kWhole>
struct Lanes {
  size_t last;

  template <size_t NV>
  Vec::T load(const float* from, size_t v) const {
    from += v * Vec::kLanes;
    return kWhole || v + 1 < NV ? Vec::load(from) : Vec::load_first(from, last);
  }
  template <size_t NV>
  void store(float* to, size_t v, Vec::T value) const {
    to += v * Vec::kLanes;
    if (kWhole || v + 1 < NV) {
      Vec::store(to, value);
    } else {
      Vec::store_first(to, value, last);
    }
  }
};

// Whether all taps of a position are inside.
inline bool is_inside(const Strip& s, size_t i) {
  if (s.windows == nullptr) return true;
  const Window& w = s.windows[i];
  return w.top == 0 && w.left == 0 && w.bottom == s.height && w.right == s.width;
}

// What follows the sums of row i of the strip.
template <size_t NV, bool kWhole>
inline void finish(const Strip& s, size_t i, size_t c, Lanes<kWhole> lanes, const Vec::T (&acc)[NV],
                   Vec::T lo, Vec::T hi) {
  const size_t at = s.dests[i] * s.ldy + c;
#pragma GCC unroll 4
  for (size_t v = 0; v < NV; ++v) {
    Vec::T value = acc[v];
    if (s.residual != nullptr) {
      value = Vec::add(value, lanes.template load<NV>(s.residual + at, v));
    }
    lanes.template store<NV>(s.y + at, v, Vec::clamp(value, lo, hi));
  }
}

// The weights of the first tap for channels from c on.
inline const float* weights_of(const Strip& s, size_t c) {
  return s.weights + c / kBlock * s.height * s.width * kBlock + c % kBlock;
}

// The sums of a group begin with the bias.
template <size_t P, size_t NV>
inline void start(const Strip& s, size_t c, Vec::T (&acc)[P][NV]) {
#pragma GCC unroll 4
  for (size_t v = 0; v < NV; ++v) {
    acc[0][v] = Vec::load(s.bias + c + v * Vec::kLanes);
#pragma GCC unroll 8
    for (size_t p = 1; p < P; ++p) acc[p][v] = acc[0][v];
  }
}

// Calls f(part) for parts of the strip of at most so many positions, one after the other.
template <typename F>
inline void in_parts(const Strip& strip, size_t most, const F& f) {
  Strip part = strip;
  for (size_t done = 0; done < strip.m; done += part.m) {
    part.m = strip.m - done < most ? strip.m - done : most;
    part.dests = strip.dests + done;
    if (strip.taps != nullptr) {
      part.taps = strip.taps + done * strip.height * strip.width;
    } else {
      part.rows = strip.rows + done;
      if (strip.windows != nullptr) part.windows = strip.windows + done;
    }
    f(part);
  }
}

template <size_t N>
struct Vectors {
  static constexpr size_t kCount = N;
};

// Calls f(Vectors<NV>, first channel, lanes) for all blocks of channels.
template <typename F>
inline void all_channels(const Strip& s, const F& f) {
  constexpr size_t kLanes = Vec::kLanes;
  size_t c = 0;
  for (; c + 2 * kLanes <= s.channels; c += 2 * kLanes) f(Vectors<2>{}, c, Lanes<true>{kLanes});
  for (; c + kLanes <= s.channels; c += kLanes) f(Vectors<1>{}, c, Lanes<true>{kLanes});
  if (c < s.channels) f(Vectors<1>{}, c, Lanes<false>{s.channels - c});
}

}  // namespace
}  // namespace semisparse::dwconv

#define SEMISPARSE_DWCONV_DEFINE(isa)                   \
  namespace semisparse::dwconv {                        \
  void dwconv_##isa(const Strip& strip) { run(strip); } \
  }
