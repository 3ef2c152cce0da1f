#include "json.hpp"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <limits>
#include <locale>
#include <sstream>
#include <unordered_map>

#include "text.hpp"

namespace destseg_core {
namespace {

constexpr int kMaxDepth = 200;
constexpr std::size_t kMaxDigits = 4300;  // of a whole number

bool is_digit(char32_t c) { return c >= U'0' && c <= U'9'; }

int hex_digit(char32_t c) {
  if (is_digit(c)) return static_cast<int>(c - U'0');
  if (c >= U'a' && c <= U'f') return static_cast<int>(c - U'a') + 10;
  if (c >= U'A' && c <= U'F') return static_cast<int>(c - U'A') + 10;
  return -1;
}

// The exponent in a number's text, 0 without one; limited to 1e18, which is enough for its sign.
double exponent_of(std::string_view digits) {
  std::size_t at = digits.find_first_of("eE");
  if (at == std::string_view::npos) return 0;
  const char sign = digits[++at];
  if (sign == '+' || sign == '-') ++at;
  long value = 0;
  const auto result = std::from_chars(digits.data() + at, digits.data() + digits.size(), value);
  const double size = result.ec == std::errc() ? static_cast<double>(value) : 1e18;
  return sign == '-' ? -size : size;
}

// The value of a number that no double can hold: infinity or zero. The place of its first digit other
// than 0 decides, since from_chars says only that the number is out of range.
double out_of_range(std::string_view digits) {
  const bool negative = digits.front() == '-';
  if (negative) digits.remove_prefix(1);
  const std::string_view mantissa = digits.substr(0, digits.find_first_of("eE"));
  const std::size_t point = std::min(mantissa.find('.'), mantissa.size());
  const std::size_t first = std::min(mantissa.find_first_of("123456789"), mantissa.size());
  const double place =
      static_cast<double>(point) - static_cast<double>(first) + exponent_of(digits);
  const double value = place > 0 ? std::numeric_limits<double>::infinity() : 0.0;
  return negative ? -value : value;
}

// What a number's digits mean. The standard libraries of GCC 10 and LLVM 14 read whole numbers only.
#if (defined(__cpp_lib_to_chars) || defined(_MSC_VER)) && !defined(DESTSEG_NO_FROM_CHARS)
double to_double(const std::string &digits) {
  double value = 0;
  const auto result = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  return result.ec == std::errc::result_out_of_range ? out_of_range(digits) : value;
}
#else
double to_double(const std::string &digits) {
  std::istringstream stream(digits);
  stream.imbue(std::locale::classic());  // a point, in every country
  double value = 0;
  if (stream >> value) return value;
  // libc++ calls numbers below the smallest normal one a failure, too, and gives their value.
  const bool subnormal = value != 0 && std::fabs(value) < std::numeric_limits<double>::min();
  return subnormal ? value : out_of_range(digits);
}
#endif

// Positions count characters from 0, lines and columns from 1.
class Parser {
 public:
  explicit Parser(const std::u32string &text) : text_(text) {}

  Json document() {
    if (!text_.empty() && text_[0] == 0xfeff)
      fail("unexpected byte order mark", 0);
    skip_space();
    Json value = parse_value(0);
    skip_space();
    if (at_ < text_.size()) fail("expected the end of the file", at_);
    return value;
  }

 private:
  [[noreturn]] void fail(const std::string &what, std::size_t at) const {
    const auto begin = text_.begin();
    const auto end = begin + static_cast<std::ptrdiff_t>(std::min(at, text_.size()));
    const auto line = 1 + std::count(begin, end, U'\n');
    const std::size_t newline = at == 0 ? std::u32string::npos : text_.rfind(U'\n', at - 1);
    const std::size_t column = newline == std::u32string::npos ? at + 1 : at - newline;
    throw JsonError(what + ": line " + std::to_string(line) + " column " + std::to_string(column) +
                    " (char " + std::to_string(at) + ")");
  }

  bool is(char32_t c) const { return at_ < text_.size() && text_[at_] == c; }

  void skip_space() {
    while (is(U' ') || is(U'\t') || is(U'\n') || is(U'\r')) ++at_;
  }

  bool take(std::u32string_view word) {
    if (std::u32string_view(text_).substr(at_, word.size()) != word) return false;
    at_ += word.size();
    return true;
  }

  Json parse_value(int depth) {
    if (depth > kMaxDepth)
      throw JsonError("nested deeper than " + std::to_string(kMaxDepth) + " levels");
    Json value;
    if (is(U'"')) {
      value.kind = Json::Kind::string;
      value.text = parse_string();
    } else if (is(U'{')) {
      parse_object(value, depth);
    } else if (is(U'[')) {
      parse_array(value, depth);
    } else if (!parse_word(value)) {
      parse_number(value);
    }
    return value;
  }

  bool parse_word(Json &value) {
    if (take(U"null")) return true;
    value.kind = Json::Kind::boolean;
    if ((value.boolean = take(U"true")) || take(U"false")) return true;
    // Python's json reads these three, too; a spec's checks refuse them by name.
    value.kind = Json::Kind::number;
    value.number = std::numeric_limits<double>::quiet_NaN();
    if (take(U"NaN")) return value.text = "NaN", true;
    value.number = std::numeric_limits<double>::infinity();
    if (take(U"Infinity")) return value.text = "Infinity", true;
    value.number = -value.number;
    value.text = "-Infinity";
    return take(U"-Infinity");
  }

  void parse_number(Json &value) {
    const std::size_t start = at_;
    if (is(U'-')) ++at_;
    if (is(U'0')) {
      ++at_;
    } else {
      if (!digit_at(at_)) fail("expected a value", start);
      skip_digits();
    }
    const std::size_t whole = at_;
    if (is(U'.') && digit_at(at_ + 1)) ++at_, skip_digits();
    parse_exponent();
    const std::string digits(text_.begin() + static_cast<std::ptrdiff_t>(start),
                             text_.begin() + static_cast<std::ptrdiff_t>(at_));
    value.kind = at_ == whole ? Json::Kind::integer : Json::Kind::number;
    value.number = to_double(digits);
    value.text = digits;
    if (value.kind == Json::Kind::integer && digits.size() > kMaxDigits + (digits[0] == '-'))
      throw JsonError("a whole number has more than " + std::to_string(kMaxDigits) + " digits");
  }

  bool digit_at(std::size_t at) const { return at < text_.size() && is_digit(text_[at]); }

  void skip_digits() {
    while (digit_at(at_)) ++at_;
  }

  void parse_exponent() {
    if (!is(U'e') && !is(U'E')) return;
    const bool sign = at_ + 1 < text_.size() && (text_[at_ + 1] == U'+' || text_[at_ + 1] == U'-');
    const std::size_t digits = at_ + 1 + (sign ? 1 : 0);
    if (!digit_at(digits)) return;
    at_ = digits;
    skip_digits();
  }

  void parse_array(Json &value, int depth) {
    value.kind = Json::Kind::array;
    ++at_;
    skip_space();
    if (is(U']')) {
      ++at_;
      return;
    }
    while (true) {
      value.items.push_back(parse_value(depth + 1));
      skip_space();
      if (is(U']')) break;
      if (!is(U',')) fail("expected ','", at_);
      ++at_;
      skip_space();
    }
    ++at_;
  }

  void parse_object(Json &value, int depth) {
    value.kind = Json::Kind::object;
    std::unordered_map<std::string, std::size_t> places;
    ++at_;
    skip_space();
    while (!is(U'}') || !value.entries.empty()) {
      if (!is(U'"')) fail("expected a name in double quotes", at_);
      std::string name = parse_string();
      skip_space();
      if (!is(U':')) fail("expected ':'", at_);
      ++at_;
      skip_space();
      Json item = parse_value(depth + 1);
      const auto [place, added] = places.emplace(name, value.entries.size());
      if (added)
        value.entries.emplace_back(std::move(name), std::move(item));
      else
        value.entries[place->second].second = std::move(item);
      skip_space();
      if (is(U'}')) break;
      if (!is(U',')) fail("expected ','", at_);
      ++at_;
      skip_space();
    }
    ++at_;
  }

  std::string parse_string() {
    const std::size_t start = at_++;
    std::string value;
    while (true) {
      if (at_ >= text_.size()) fail("text without closing quotes", start);
      const char32_t c = text_[at_];
      if (c == U'"') break;
      if (c == U'\\') {
        append_utf8(value, parse_escape(start));
        continue;
      }
      if (c < 0x20) fail("unescaped control character", at_);
      append_utf8(value, c);
      ++at_;
    }
    ++at_;
    return value;
  }

  char32_t parse_escape(std::size_t start) {
    const std::size_t backslash = at_++;
    if (at_ >= text_.size()) fail("text without closing quotes", start);
    const char32_t c = text_[at_++];
    if (c == U'u') return parse_unicode();
    constexpr std::u32string_view kNames = U"\"\\/bfnrt", kValues = U"\"\\/\b\f\n\r\t";
    const std::size_t found = kNames.find(c);
    if (found == std::u32string_view::npos) fail("invalid escape", backslash);
    return kValues[found];
  }

  char32_t parse_unicode() {
    const char32_t first = parse_hex();
    if (first < 0xd800 || first >= 0xe000) return first;
    // UTF-8 cannot hold one half of a surrogate pair, so U+FFFD stands for it.
    if (first >= 0xdc00 || at_ + 6 >= text_.size() || text_[at_] != U'\\' || text_[at_ + 1] != U'u')
      return 0xfffd;
    const std::size_t second_at = at_;
    at_ += 2;
    const char32_t second = parse_hex();
    if (second >= 0xdc00 && second < 0xe000)
      return 0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00);
    at_ = second_at;  // not a pair; the second is a character of its own
    return 0xfffd;
  }

  char32_t parse_hex() {
    if (at_ + 4 >= text_.size()) fail("invalid \\uXXXX escape", at_ - 1);
    char32_t value = 0;
    for (std::size_t i = 0; i < 4; ++i) {
      const int digit = hex_digit(text_[at_ + i]);
      if (digit < 0) fail("invalid \\uXXXX escape", at_ - 1);
      value = value * 16 + static_cast<char32_t>(digit);
    }
    at_ += 4;
    return value;
  }

  const std::u32string &text_;
  std::size_t at_ = 0;
};

// Control characters are escaped, those of two bytes (U+0080 to U+009F), too: a terminal obeys them.
void append_text(std::string &shown, std::string_view text) {
  shown += '"';
  for (std::size_t i = 0; i < text.size(); ++i) {
    auto code = static_cast<unsigned char>(text[i]);
    const auto next = i + 1 < text.size() ? static_cast<unsigned char>(text[i + 1]) : 0;
    const bool two = code == 0xc2 && next >= 0x80 && next < 0xa0;
    if (two) code = static_cast<unsigned char>(next), ++i;
    char escape[8];
    std::snprintf(escape, sizeof escape, "\\u%04x", static_cast<unsigned>(code));
    if (two || code < 0x20 || code == 0x7f)
      shown += escape;
    else
      (shown += code == '"' || code == '\\' ? "\\" : "") += text[i];
  }
  shown += '"';
}

// Stops when there is enough to show: a damaged file may nest or repeat at will.
void append_json(std::string &shown, const Json &value) {
  if (shown.size() > kShown) return;
  const char *separator = "";
  switch (value.kind) {
    case Json::Kind::null: shown += "null"; return;
    case Json::Kind::boolean: shown += value.boolean ? "true" : "false"; return;
    case Json::Kind::integer:
    case Json::Kind::number: shown += value.text; return;
    case Json::Kind::string: append_text(shown, value.text); return;
    case Json::Kind::array:
      shown += '[';
      for (const Json &item : value.items) {
        shown += std::exchange(separator, ", ");
        append_json(shown, item);
      }
      shown += ']';
      return;
    case Json::Kind::object:
      shown += '{';
      for (const auto &[name, item] : value.entries) {
        shown += std::exchange(separator, ", ");
        append_text(shown, name);
        shown += ": ";
        append_json(shown, item);
      }
      shown += '}';
  }
}

}  // namespace

std::string show(const Json &value) {
  std::string shown;
  append_json(shown, value);
  return shown.size() <= kShown ? shown : beginning(shown, kShown) + "...";
}

const Json *Json::find(std::string_view name) const {
  for (const auto &entry : entries)
    if (entry.first == name) return &entry.second;
  return nullptr;
}

Json parse_json(const std::u32string &text) { return Parser(text).document(); }

}  // namespace destseg_core
