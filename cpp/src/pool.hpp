// Objects that one thread uses at a time, made on demand up to a limit and then shared.
#pragma once

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

namespace destseg_core {

template <typename T>
class Pool {
 public:
  Pool(int limit, std::function<std::unique_ptr<T>()> make) : limit_(limit), make_(std::move(make)) {}

  // Borrows an object, waiting while all are borrowed; gives it back when it is destroyed.
  class Lease {
   public:
    explicit Lease(Pool &pool) : pool_(pool), item_(pool.take()) {}
    ~Lease() { pool_.give_back(std::move(item_)); }
    Lease(const Lease &) = delete;
    Lease &operator=(const Lease &) = delete;
    T &operator*() const { return *item_; }
    T *operator->() const { return item_.get(); }

   private:
    Pool &pool_;
    std::unique_ptr<T> item_;
  };

 private:
  std::unique_ptr<T> take() {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return !idle_.empty() || made_ < limit_; });
    if (!idle_.empty()) {
      std::unique_ptr<T> item = std::move(idle_.back());
      idle_.pop_back();
      return item;
    }
    idle_.reserve(static_cast<std::size_t>(made_) + 1);  // so that give_back() needs no memory
    ++made_;
    lock.unlock();
    try {
      return make_();
    } catch (...) {
      lock.lock();
      --made_;
      changed_.notify_one();
      throw;
    }
  }

  void give_back(std::unique_ptr<T> item) noexcept {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      idle_.push_back(std::move(item));
    }
    changed_.notify_one();
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::unique_ptr<T>> idle_;
  int made_ = 0;
  const int limit_;
  const std::function<std::unique_ptr<T>()> make_;
};

}  // namespace destseg_core
