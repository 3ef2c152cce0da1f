// A strict JSON reader that accepts and refuses what Python's json module does, so that a spec is
// good for both runtimes or for neither.
//
// It has three limits of its own: nesting of 200 levels, whole numbers of 4300 digits (as Python
// has by default), and kMaxJsonBytes (spec.hpp).
#pragma once

#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace destseg_core {

// A value. Entries of an object stand in the file's order; of equal names the last one counts.
struct Json {
  enum class Kind { null, boolean, integer, number, string, array, object };

  Kind kind = Kind::null;
  bool boolean = false;
  double number = 0;  // of an integer, too, rounded; infinite when it is beyond a double
  std::string text;   // a string in UTF-8, or a number as it stands in the file
  std::vector<Json> items;
  std::vector<std::pair<std::string, Json>> entries;

  // The entry of that name, or nullptr.
  const Json *find(std::string_view name) const;
};

// What is wrong with a text, with line, column and character.
class JsonError : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

Json parse_json(const std::u32string &text);

// A value as JSON on one line for an error, cut to kShown bytes.
std::string show(const Json &value);

}  // namespace destseg_core
