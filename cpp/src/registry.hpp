// Handles of the ABI: numbers that are looked up, never followed, and never given out twice.
#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>
#include <utility>

#include "destseg.h"
#include "error.hpp"
#include "predictor.hpp"
#include "queue.hpp"

namespace destseg_core {

// What a handle stands for: a predictor that can be replaced, its tickets, and the calls that run.
class OpenPredictor {
 public:
  OpenPredictor(std::shared_ptr<Predictor> opened, int queue)
      : predictor_(std::move(opened)), queue_length_(queue) {}

  std::shared_ptr<Predictor> begin() {
    const std::lock_guard<std::mutex> lock(mutex_);
    ++calls_;
    return predictor_;
  }
  void end() noexcept {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (--calls_ == 0) idle_.notify_all();
  }
  // Calls that run keep the one they began with.
  void replace(std::shared_ptr<Predictor> opened) {
    const std::lock_guard<std::mutex> lock(mutex_);
    predictor_.swap(opened);
  }
  // Its threads begin at the first call; within a call only. Throws Error (backend) while it is closed.
  Queue &queue() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (closing_)
      throw backend_error("predictor: the runtime is closed. Load the artifact again.");
    if (!queue_) queue_ = std::make_unique<Queue>(queue_length_, predictor_->parallel());
    return *queue_;
  }
  // Waits for the calls that run, then releases everything.
  void close() {
    std::unique_lock<std::mutex> lock(mutex_);
    closing_ = true;
    if (queue_) queue_->stop();  // or those who wait for it would never end
    idle_.wait(lock, [&] { return calls_ == 0; });
    lock.unlock();
    queue_.reset();
    predictor_.reset();
  }

 private:
  std::mutex mutex_;
  std::condition_variable idle_;
  std::shared_ptr<Predictor> predictor_;
  const int queue_length_;
  std::unique_ptr<Queue> queue_;
  bool closing_ = false;
  int calls_ = 0;
};

// A predictor that a call uses, and that is not closed before the call ends.
class InUse {
 public:
  explicit InUse(std::shared_ptr<OpenPredictor> open)
      : open_(std::move(open)), predictor_(open_->begin()) {}
  ~InUse() {
    predictor_.reset();  // before the call counts as ended
    open_->end();
  }
  InUse(const InUse &) = delete;
  InUse &operator=(const InUse &) = delete;
  Predictor *operator->() const { return predictor_.get(); }
  std::shared_ptr<Predictor> shared() const { return predictor_; }
  Queue &queue() const { return open_->queue(); }
  void replace(std::shared_ptr<Predictor> opened) const { open_->replace(std::move(opened)); }

 private:
  const std::shared_ptr<OpenPredictor> open_;
  std::shared_ptr<Predictor> predictor_;
};

// `queue` tickets of it may be open.
destseg_predictor *add_handle(std::shared_ptr<Predictor> predictor, int queue);
// Throws Error (backend) for a handle that is closed.
InUse find_handle(const destseg_predictor *handle);
// Waits for the calls that run, then closes. New calls are refused from the beginning on.
void remove_handle(const destseg_predictor *handle);

}  // namespace destseg_core
