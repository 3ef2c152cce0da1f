#include "json.hpp"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <unordered_map>

namespace destseg_core {
namespace {

constexpr int kMaxDepth = 200;
constexpr std::size_t kMaxDigits = 4300;  // of an integer; sys.int_info.default_max_str_digits

bool is_digit(char32_t c) { return c >= U'0' && c <= U'9'; }

int hex_digit(char32_t c) {
  if (is_digit(c)) return static_cast<int>(c - U'0');
  if (c >= U'a' && c <= U'f') return static_cast<int>(c - U'a') + 10;
  if (c >= U'A' && c <= U'F') return static_cast<int>(c - U'A') + 10;
  return -1;
}

// The exponent of a number's text, 0 without one; saturates, as it only has to decide a side.
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

// What lies beyond a double: infinity above, zero below, told by the first digit's place.
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

double to_double(const std::string &digits) {
  double value = 0;
  const auto result = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  return result.ec == std::errc::result_out_of_range ? out_of_range(digits) : value;
}

// Positions count characters, as in Python's messages.
class Parser {
 public:
  explicit Parser(const std::u32string &text) : text_(text) {}

  Json document() {
    if (!text_.empty() && text_[0] == 0xfeff)
      fail("Unexpected UTF-8 BOM (decode using utf-8-sig)", 0);
    skip_space();
    Json value = parse_value(0);
    skip_space();
    if (at_ < text_.size()) fail("Extra data", at_);
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
    value.kind = Json::Kind::number;
    value.number = std::numeric_limits<double>::quiet_NaN();
    if (take(U"NaN")) return true;
    value.number = std::numeric_limits<double>::infinity();
    if (take(U"Infinity")) return true;
    value.number = -value.number;
    return take(U"-Infinity");
  }

  void parse_number(Json &value) {
    const std::size_t start = at_;
    if (is(U'-')) ++at_;
    if (is(U'0')) {
      ++at_;
    } else {
      if (!digit_at(at_)) fail("Expecting value", start);
      skip_digits();
    }
    const std::size_t whole = at_;
    if (is(U'.') && digit_at(at_ + 1)) ++at_, skip_digits();
    parse_exponent();
    const std::string digits(text_.begin() + static_cast<std::ptrdiff_t>(start),
                             text_.begin() + static_cast<std::ptrdiff_t>(at_));
    value.kind = at_ == whole ? Json::Kind::integer : Json::Kind::number;
    value.number = to_double(digits);
    if (value.kind == Json::Kind::integer) take_integer(value, digits);
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

  static void take_integer(Json &value, const std::string &digits) {
    const std::size_t count = digits.size() - (digits[0] == '-' ? 1 : 0);
    if (count > kMaxDigits)
      throw JsonError("Exceeds the limit (4300 digits) for integer string conversion: value has " +
                      std::to_string(count) +
                      " digits; use sys.set_int_max_str_digits() to increase the limit");
    value.text = digits == "-0" ? "0" : digits;
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
      if (!is(U',')) fail("Expecting ',' delimiter", at_);
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
      if (!is(U'"')) fail("Expecting property name enclosed in double quotes", at_);
      std::string name = parse_string();
      skip_space();
      if (!is(U':')) fail("Expecting ':' delimiter", at_);
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
      if (!is(U',')) fail("Expecting ',' delimiter", at_);
      ++at_;
      skip_space();
    }
    ++at_;
  }

  std::string parse_string() {
    const std::size_t start = at_++;
    std::string value;
    while (true) {
      if (at_ >= text_.size()) fail("Unterminated string starting at", start);
      const char32_t c = text_[at_];
      if (c == U'"') break;
      if (c == U'\\') {
        append_utf8(value, parse_escape(start));
        continue;
      }
      if (c < 0x20) fail("Invalid control character at", at_);
      append_utf8(value, c);
      ++at_;
    }
    ++at_;
    return value;
  }

  char32_t parse_escape(std::size_t start) {
    const std::size_t backslash = at_++;
    if (at_ >= text_.size()) fail("Unterminated string starting at", start);
    const char32_t c = text_[at_++];
    if (c == U'u') return parse_unicode();
    constexpr std::u32string_view kNames = U"\"\\/bfnrt", kValues = U"\"\\/\b\f\n\r\t";
    const std::size_t found = kNames.find(c);
    if (found == std::u32string_view::npos) fail("Invalid \\escape", backslash);
    return kValues[found];
  }

  char32_t parse_unicode() {
    const char32_t first = parse_hex();
    const bool high = first >= 0xd800 && first < 0xdc00;
    if (!high || at_ + 6 >= text_.size() || text_[at_] != U'\\' || text_[at_ + 1] != U'u')
      return first;
    const std::size_t second_at = at_;
    at_ += 2;
    const char32_t second = parse_hex();
    if (second >= 0xdc00 && second < 0xe000)
      return 0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00);
    at_ = second_at;  // no pair; the second stands for itself
    return first;
  }

  char32_t parse_hex() {
    if (at_ + 4 >= text_.size()) fail("Invalid \\uXXXX escape", at_ - 1);
    char32_t value = 0;
    for (std::size_t i = 0; i < 4; ++i) {
      const int digit = hex_digit(text_[at_ + i]);
      if (digit < 0) fail("Invalid \\uXXXX escape", at_ - 1);
      value = value * 16 + static_cast<char32_t>(digit);
    }
    at_ += 4;
    return value;
  }

  const std::u32string &text_;
  std::size_t at_ = 0;
};

}  // namespace

const Json *Json::find(std::string_view name) const {
  for (const auto &entry : entries)
    if (entry.first == name) return &entry.second;
  return nullptr;
}

Json parse_json(const std::u32string &text) { return Parser(text).document(); }

}  // namespace destseg_core
