// Memory that a run needs only while it lasts, kept for the next one.
#pragma once

#include <atomic>
#include <memory>

#include "core/buffer.h"

namespace semisparse {

// One piece of scratch memory kept from run to run. Concurrent runs of one convolution each get
// their own: whoever finds the slot empty allocates, and the last to finish leaves its piece
// behind.
class ScratchSlot {
 public:
  ScratchSlot() = default;
  ScratchSlot(const ScratchSlot&) = delete;
  ScratchSlot& operator=(const ScratchSlot&) = delete;
  ~ScratchSlot() { delete kept_.load(); }

  struct Piece {
    Buffer data;
    size_t floats = 0;
  };

  std::unique_ptr<Piece> take(size_t floats) {
    std::unique_ptr<Piece> piece(kept_.exchange(nullptr));
    if (piece == nullptr || piece->floats < floats) {
      piece = std::make_unique<Piece>();
      piece->data = make_buffer(floats);
      piece->floats = floats;
    }
    return piece;
  }

  void give_back(std::unique_ptr<Piece> piece) { delete kept_.exchange(piece.release()); }

 private:
  std::atomic<Piece*> kept_{nullptr};
};

// Memory that each thread keeps from run to run, whoever uses it: what one layer has left of it in
// the cache the next one finds there. A task that meets its thread in the middle of another's gets
// a piece of its own.
class ThreadScratch {
 public:
  explicit ThreadScratch(size_t floats) : piece_(slot().take(floats)) {}
  ThreadScratch(const ThreadScratch&) = delete;
  ThreadScratch& operator=(const ThreadScratch&) = delete;
  ~ThreadScratch() { slot().give_back(std::move(piece_)); }

  float* data() const { return piece_->data.get(); }

 private:
  static ScratchSlot& slot() {
    thread_local ScratchSlot slot;
    return slot;
  }

  std::unique_ptr<ScratchSlot::Piece> piece_;
};

}  // namespace semisparse
