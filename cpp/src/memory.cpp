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
constexpr const char *kWordsOfThreads[] = {"pthread_create", "_beginthreadex",
                                           "resource temporarily unavailable"};

char lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; }

std::string in_lower_case(const std::string &message) {
  std::string text(message.size(), ' ');
  std::transform(message.begin(), message.end(), text.begin(), lower);
  return text;
}

}  // namespace

bool lacks_memory(const std::string &message) {
  const std::string text = in_lower_case(message);
  return std::any_of(std::begin(kWords), std::end(kWords),
                     [&](const char *word) { return text.find(word) != std::string::npos; });
}

Error memory_error(const std::string &what, const std::string &message) {
  return {DESTSEG_ERROR_MEMORY,
          what + ": not enough memory (" + beginning(message, 120) +
              "). Use smaller images or a smaller batch, close other programs, or take a machine "
              "with more."};
}

void refuse_shortage(const std::string &what, const std::string &message) {
  if (lacks_memory(message)) throw memory_error(what, message);
  const std::string text = in_lower_case(message);
  for (const char *word : kWordsOfThreads)
    if (const std::size_t at = text.find(word); at != std::string::npos)
      throw backend_error(what + ": threads cannot be started (" +
                          beginning(message.substr(at), 120) +
                          "). Set threads to a smaller number, or raise the limit of threads.");
}

}  // namespace destseg_core
