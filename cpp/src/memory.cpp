#include "memory.hpp"

#include <algorithm>

#include "text.hpp"

namespace destseg_core {
namespace {

// In lower case; the words of destseg_deploy/memory.py, which says whose they are.
constexpr const char *kWords[] = {
    "bad_alloc",       "bad allocation",      "out of memory",      "out_of_memory",
    "outofmemory",     "can't alloc",         "cannot allocate",    "failed to allocate",
    "unable to allocate", "insufficient memory", "not enough memory"};

char lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; }

}  // namespace

bool lacks_memory(const std::string &message) {
  std::string text(message.size(), ' ');
  std::transform(message.begin(), message.end(), text.begin(), lower);
  return std::any_of(std::begin(kWords), std::end(kWords),
                     [&](const char *word) { return text.find(word) != std::string::npos; });
}

Error memory_error(const std::string &what, const std::string &message) {
  return {DESTSEG_ERROR_MEMORY,
          what + ": not enough memory (" + beginning(message, 120) +
              "). Use smaller images or a smaller batch, close other programs, or take a machine "
              "with more."};
}

}  // namespace destseg_core
