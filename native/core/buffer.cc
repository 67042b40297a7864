#include "core/buffer.h"

#include <mutex>

#include "core/division.h"

namespace semisparse {
namespace {

constexpr size_t kChunkFloats = 4 * kLargePage / sizeof(float);

#if defined(__SANITIZE_ADDRESS__)
constexpr bool kShare = false;  // so that a read beyond one of them is found
#else
constexpr bool kShare = true;
#endif

}  // namespace

Buffer make_lasting_buffer(size_t floats) {
  const size_t taken = ceil_div(floats, kLineFloats) * kLineFloats;
  if (!kShare || taken * sizeof(float) >= kLargePage) return make_buffer(floats);
  // The chunk that is being filled, and how much of it is.
  static std::mutex mutex;
  static std::weak_ptr<float> filling;
  static size_t filled = 0;
  const std::lock_guard<std::mutex> lock(mutex);
  std::shared_ptr<float> chunk = filling.lock();
  if (chunk == nullptr || filled + taken > kChunkFloats) {
    chunk = std::shared_ptr<float>(make_buffer(kChunkFloats).release(), std::free);
    filling = chunk;
    filled = 0;
  }
  float* const begin = chunk.get() + filled;
  filled += taken;
  return Buffer(begin, Free{std::move(chunk)});
}

}  // namespace semisparse
