// Tickets: frames that were handed over, the threads that score them, and the answers until somebody
// collects them. One for each handle, shared by threads; a reload does not touch it.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <unordered_map>
#include <vector>

#include "destseg.h"
#include "predictor.hpp"

namespace destseg_core {

// Frames of one ticket and, later, their answers or the error.
struct Ticket {
  std::shared_ptr<Predictor> predictor;  // until it is done
  Prepared frames;                       // until it is done
  std::vector<destseg_result> results;
  std::vector<float> maps;
  std::exception_ptr error;
  bool done = false;
};

class Queue {
 public:
  // `limit` tickets may be open; `threads` of them run at once.
  Queue(int limit, int threads);
  // Drops what was not begun and waits for what runs.
  ~Queue();
  Queue(const Queue &) = delete;
  Queue &operator=(const Queue &) = delete;

  // Throws Error: timeout, backend when it is stopped, or what preparing the frames throws.
  std::uint64_t submit(std::shared_ptr<Predictor> predictor, const destseg_frame *frames, int count,
                       int timeout_ms);
  // The answers of a ticket, which is closed then; before that, `fits` may throw for their number of
  // results and of floats. Throws Error (timeout), and the error of the inference.
  template <typename Fits>
  std::shared_ptr<const Ticket> collect(std::uint64_t number, int timeout_ms, const Fits &fits) {
    const std::shared_ptr<const Ticket> ticket = find(number);
    fits(ticket->results.size(), ticket->maps.size());
    take(number, timeout_ms);
    if (ticket->error) std::rethrow_exception(ticket->error);
    return ticket;
  }
  // Refuses new tickets, drops those that were not begun, and lets go of everybody who waits for room.
  void stop();

 private:
  std::shared_ptr<const Ticket> find(std::uint64_t number);
  void take(std::uint64_t number, int timeout_ms);
  void reserve(int timeout_ms);
  void release();
  void end();  // stops, and waits for the threads, which must end before this object does
  void work();

  const int limit_;
  std::mutex mutex_;
  std::condition_variable added_;    // for the threads
  std::condition_variable changed_;  // for those who wait for answers or for room
  std::deque<std::shared_ptr<Ticket>> waiting_;
  std::unordered_map<std::uint64_t, std::shared_ptr<Ticket>> open_;
  std::uint64_t next_ = 1;
  int taken_ = 0;  // of limit_: tickets that are open, or being made
  bool stopped_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace destseg_core
