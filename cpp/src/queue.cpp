#include "queue.hpp"

#include <chrono>
#include <string>
#include <system_error>
#include <utility>

#include "error.hpp"

namespace destseg_core {
namespace {

Error closed_error() {
  return backend_error("predictor: closed before the ticket was begun. Load the artifact again.");
}

// Waits until `is_so()`; false when the time has passed. A negative one does not pass.
template <typename Condition>
bool wait(std::condition_variable &changed, std::unique_lock<std::mutex> &lock, int timeout_ms,
          const Condition &is_so) {
  if (timeout_ms >= 0)
    return changed.wait_for(lock, std::chrono::milliseconds(timeout_ms), is_so);
  changed.wait(lock, is_so);
  return true;
}

void run(Ticket &ticket) noexcept {
  try {
    ticket.predictor->infer(ticket.frames, ticket.results.data(), ticket.maps.data(),
                            ticket.maps.size());
  } catch (...) {
    ticket.error = std::current_exception();
  }
  ticket.frames = {};
  ticket.predictor.reset();  // which may be the last of an artifact that was replaced
}

}  // namespace

Queue::Queue(int limit, int threads) : limit_(limit) {
  try {
    for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { work(); });
  } catch (const std::system_error &error) {
    end();
    throw backend_error("queue: " + std::to_string(threads) + " threads cannot be started (" +
                        one_line(error.what()) +
                        "). Pass a smaller parallel, or raise the limit of threads.");
  } catch (...) {
    end();
    throw;
  }
}

Queue::~Queue() { end(); }

void Queue::end() {
  stop();
  for (std::thread &thread : threads_) thread.join();
}

std::uint64_t Queue::submit(std::shared_ptr<Predictor> predictor, const destseg_frame *frames,
                            int count, int timeout_ms) {
  auto ticket = std::make_shared<Ticket>();
  reserve(timeout_ms);
  try {
    ticket->frames = predictor->prepare(frames, count);
    ticket->results.resize(static_cast<std::size_t>(count));
    ticket->maps.resize(static_cast<std::size_t>(count) * predictor->spec().map.pixels());
    ticket->predictor = std::move(predictor);
    const std::lock_guard<std::mutex> lock(mutex_);
    if (stopped_) throw closed_error();
    open_.emplace(next_, ticket);
    try {
      waiting_.push_back(std::move(ticket));
    } catch (...) {
      open_.erase(next_);
      throw;
    }
    added_.notify_one();
    return next_++;
  } catch (...) {
    release();
    throw;
  }
}

void Queue::reserve(int timeout_ms) {
  std::unique_lock<std::mutex> lock(mutex_);
  const bool room = wait(changed_, lock, timeout_ms, [&] { return stopped_ || taken_ < limit_; });
  if (stopped_) throw closed_error();
  if (!room)
    throw timeout_error("queue: " + std::to_string(taken_) + " tickets are open, and none was "
                        "collected in " + std::to_string(timeout_ms) + " ms. Collect answers with "
                        "destseg_wait, or open the predictor with a longer queue.");
  ++taken_;
}

void Queue::release() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    --taken_;
  }
  changed_.notify_all();
}

std::shared_ptr<const Ticket> Queue::find(std::uint64_t number) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = open_.find(number);
  if (found == open_.end())
    throw argument_error("ticket " + std::to_string(number) +
                         ": not open. Pass a number of destseg_submit, and each of them once.");
  return found->second;
}

void Queue::take(std::uint64_t number, int timeout_ms) {
  {
    std::unique_lock<std::mutex> lock(mutex_);
    const auto is_done = [&] {
      const auto found = open_.find(number);
      return found == open_.end() || found->second->done;
    };
    if (!wait(changed_, lock, timeout_ms, is_done))
      throw timeout_error("ticket " + std::to_string(number) + ": not done after " +
                          std::to_string(timeout_ms) + " ms. Wait again; it stays open.");
    if (open_.erase(number) == 0)
      throw argument_error("ticket " + std::to_string(number) +
                           ": another thread collected it. Collect each of them once.");
    --taken_;
  }
  changed_.notify_all();
}

void Queue::stop() {
  std::deque<std::shared_ptr<Ticket>> dropped;  // freed outside of the lock
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stopped_ = true;
    dropped.swap(waiting_);
    for (const std::shared_ptr<Ticket> &ticket : dropped) {
      ticket->error = std::make_exception_ptr(closed_error());
      ticket->done = true;
    }
  }
  added_.notify_all();
  changed_.notify_all();
}

void Queue::work() {
  for (;;) {
    std::shared_ptr<Ticket> ticket;
    {
      std::unique_lock<std::mutex> lock(mutex_);
      added_.wait(lock, [&] { return stopped_ || !waiting_.empty(); });
      if (waiting_.empty()) return;
      ticket = std::move(waiting_.front());
      waiting_.pop_front();
    }
    run(*ticket);
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      ticket->done = true;
    }
    changed_.notify_all();
  }
}

}  // namespace destseg_core
