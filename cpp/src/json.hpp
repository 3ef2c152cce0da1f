// A strict JSON reader that accepts, refuses and words as Python's json module does, so that a
// spec gets the same answer from both runtimes; and Python's way of showing values in errors.
//
// Two limits are its own: nesting of 200 levels, and no more than kMaxJsonBytes (spec.hpp).
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
  std::string text;   // a string in UTF-8, or an integer's digits
  std::vector<Json> items;
  std::vector<std::pair<std::string, Json>> entries;

  // The entry of that name, or nullptr.
  const Json *find(std::string_view name) const;
};

// What Python's json.JSONDecodeError says, with line, column and character.
class JsonError : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Decode UTF-8. Throws JsonError with Python's words for the first byte that is none.
std::u32string decode_utf8(std::string_view bytes);
void append_utf8(std::string &text, char32_t character);

Json parse_json(const std::u32string &text);

// repr(value) and repr(text) of Python.
std::string python_repr(const Json &value);
std::string python_repr(std::string_view text);
// text[:count] of Python: whole characters.
std::string first_characters(std::string_view text, std::size_t count);

}  // namespace destseg_core
