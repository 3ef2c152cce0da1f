// The caller's structs, of which this library reads and writes no more than their struct_size says.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>

#include "destseg.h"
#include "error.hpp"

namespace destseg_core {

constexpr std::uint32_t kLargestStruct = 4096;  // anything longer is not a size

// Where a struct ended in a release. Options of another size would cut a pointer in two.
inline bool is_size(std::uint32_t size, const destseg_options &) {
  return size == offsetof(destseg_options, precision) ||
         (size >= sizeof(destseg_options) && size <= kLargestStruct);
}
inline bool is_size(std::uint32_t size, const destseg_info &) {
  return size >= sizeof(std::uint32_t) && size <= kLargestStruct;
}
// Of a struct that may stand in an array, so that the next one is aligned as well.
template <typename T>
bool is_size(std::uint32_t size, const T &) {
  return size >= sizeof(T) && size <= kLargestStruct && size % alignof(T) == 0;
}

// Copy as much of a struct as the caller's header knew and this library knows.
template <typename T>
T known_part(const T *given, const char *name) {
  const std::uint32_t size = given->struct_size;
  if (!is_size(size, *given))
    throw argument_error(std::string(name) + ": struct_size " + std::to_string(size) +
                         ", expected " + std::to_string(sizeof(T)) + ". Set it to sizeof.");
  T known{};
  std::memcpy(&known, given, std::min<std::size_t>(size, sizeof(T)));
  return known;
}

// What the caller's header knew beyond this library's must not have been asked for.
template <typename T>
void check_rest(const T &given, const char *name) {
  const auto *const bytes = reinterpret_cast<const unsigned char *>(&given);
  const auto set = [](unsigned char value) { return value != 0; };
  if (given.struct_size > sizeof given &&
      std::any_of(bytes + sizeof given, bytes + given.struct_size, set))
    throw argument_error(std::string(name) + ": struct_size " + std::to_string(given.struct_size) +
                         " with an option set that is newer than this library, version " +
                         DESTSEG_VERSION + ". Install a newer one, or leave it zero.");
}

// The element of an array whose elements are as long as the caller's header says.
template <typename T, typename Byte>
T *element(T *first, std::uint32_t size, std::size_t index) {
  return reinterpret_cast<T *>(reinterpret_cast<Byte *>(first) + index * size);
}

// An array of the caller's structs, as long as its first struct_size says, where answers go.
template <typename T>
class Answers {
 public:
  Answers(T *first, const char *name) : first_(first), size_(known_part(first, name).struct_size) {}
  void put(std::size_t index, T value) const {
    value.struct_size = size_;
    std::memcpy(at(index), &value, sizeof value);
  }
  T *at(std::size_t index) const { return element<T, char>(first_, size_, index); }

 private:
  T *first_;
  std::uint32_t size_;
};

}  // namespace destseg_core
