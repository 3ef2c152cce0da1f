// Something that a library made, and the function in that library's table that frees it.
#pragma once

#include <utility>

namespace destseg_core {

// `table` is a function that returns the library's table; `T` is a pointer.
template <auto table, typename T, auto release>
class Owned {
 public:
  Owned() = default;
  Owned(Owned &&other) noexcept : value_(std::exchange(other.value_, nullptr)) {}
  ~Owned() { reset(); }
  Owned(const Owned &) = delete;
  Owned &operator=(const Owned &) = delete;
  Owned &operator=(Owned &&) = delete;
  T get() const { return value_; }
  // Where the library writes it; what was there is freed.
  T *receive() {
    reset();
    return &value_;
  }

 private:
  void reset() {
    if (value_ != nullptr) (table().*release)(std::exchange(value_, nullptr));
  }
  T value_ = nullptr;
};

}  // namespace destseg_core
