#include "text.hpp"

#include <cstdio>
#include <limits>
#include <locale>
#include <sstream>

#include "json.hpp"

namespace destseg_core {
namespace {

// How many bytes follow a first byte, and the smallest and largest second byte (RFC 3629, 4).
struct Sequence {
  int following;
  unsigned char low, high;
};

Sequence sequence_of(unsigned char first) {
  if (first >= 0xc2 && first <= 0xdf) return {1, 0x80, 0xbf};
  if (first == 0xe0) return {2, 0xa0, 0xbf};
  if (first == 0xed) return {2, 0x80, 0x9f};
  if (first >= 0xe1 && first <= 0xef) return {2, 0x80, 0xbf};
  if (first == 0xf0) return {3, 0x90, 0xbf};
  if (first >= 0xf1 && first <= 0xf3) return {3, 0x80, 0xbf};
  if (first == 0xf4) return {3, 0x80, 0x8f};
  return {0, 0, 0};
}

bool is_continuation(char byte) { return (static_cast<unsigned char>(byte) & 0xc0) == 0x80; }

// to_chars would do it; the standard libraries of GCC 10 and LLVM 14 have it for whole numbers only.
template <typename T>
std::string shortest(T value) {
  std::string text;
  T read = 0;
  for (int digits = 1; digits <= std::numeric_limits<T>::max_digits10; ++digits) {
    std::ostringstream out;
    out.imbue(std::locale::classic());
    out.precision(digits);
    out << value;
    text = out.str();
    std::istringstream in(text);
    in.imbue(std::locale::classic());
    if (in >> read && read == value) break;
  }
  return text;
}

}  // namespace

std::u32string decode_utf8(std::string_view bytes) {
  std::u32string text;
  text.reserve(bytes.size());
  for (std::size_t at = 0; at < bytes.size();) {
    const auto first = static_cast<unsigned char>(bytes[at]);
    const Sequence sequence = sequence_of(first);
    bool valid = first < 0x80 || sequence.following > 0;
    char32_t value = first < 0x80 ? first : first & (0x3f >> sequence.following);
    for (int i = 1; valid && i <= sequence.following; ++i) {
      const std::size_t place = at + static_cast<std::size_t>(i);
      const auto next = place < bytes.size() ? static_cast<unsigned char>(bytes[place]) : 0;
      valid = next >= (i == 1 ? sequence.low : 0x80) && next <= (i == 1 ? sequence.high : 0xbf);
      value = value << 6 | (next & 0x3f);
    }
    if (!valid) throw JsonError("byte " + std::to_string(at) + " is not UTF-8");
    text += value;
    at += 1 + static_cast<std::size_t>(sequence.following);
  }
  return text;
}

std::string to_utf8(std::string_view bytes) {
  using namespace std::string_view_literals;
  const auto zero = [&](std::size_t at) { return at >= bytes.size() || bytes[at] == 0; };
  const auto begins = [&](std::string_view mark) { return bytes.substr(0, mark.size()) == mark; };
  if (begins("\xef\xbb\xbf"sv)) return std::string(bytes.substr(3));
  // JSON begins with an ASCII character, so the zeros tell the width and the order (RFC 4627, 3).
  std::size_t width = 1;
  bool big = false;
  if (begins("\0\0\xfe\xff"sv) || begins("\xff\xfe\0\0"sv)) {
    width = 4, big = bytes[0] == 0;
  } else if (begins("\xfe\xff"sv) || begins("\xff\xfe"sv)) {
    width = 2, big = bytes[0] == '\xfe';
  } else if (bytes.size() >= 2 && (zero(0) || zero(1))) {
    big = zero(0);
    width = bytes.size() >= 4 && (big ? zero(1) : zero(2) && zero(3)) ? 4 : 2;
  }
  if (width == 1 || bytes.size() % width != 0) return std::string(bytes);
  std::string text;
  char32_t high = 0;
  for (std::size_t at = 0; at < bytes.size(); at += width) {
    char32_t value = 0;
    for (std::size_t i = 0; i < width; ++i) {
      const std::size_t place = at + (big ? i : width - 1 - i);
      value = value << 8 | static_cast<unsigned char>(bytes[place]);
    }
    const bool first = width == 2 && value >= 0xd800 && value < 0xdc00;
    const bool second = width == 2 && value >= 0xdc00 && value < 0xe000;
    if (second != (high != 0) || value > 0x10ffff) return std::string(bytes);
    if (second) value = 0x10000 + ((high - 0xd800) << 10) + (value - 0xdc00);
    high = first ? value : 0;
    if (!first && (at > 0 || value != 0xfeff)) append_utf8(text, value);
  }
  return high == 0 ? text : std::string(bytes);
}

std::string suffix_of(const std::filesystem::path &path) {
  std::string suffix = path.extension().u8string();
  for (char &c : suffix)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  return suffix;
}

void append_utf8(std::string &text, char32_t c) {
  const auto byte = [&](char32_t value) { text += static_cast<char>(value); };
  if (c < 0x80) {
    byte(c);
  } else if (c < 0x800) {
    byte(0xc0 | c >> 6), byte(0x80 | (c & 0x3f));
  } else if (c < 0x10000) {
    byte(0xe0 | c >> 12), byte(0x80 | (c >> 6 & 0x3f)), byte(0x80 | (c & 0x3f));
  } else {
    byte(0xf0 | c >> 18), byte(0x80 | (c >> 12 & 0x3f)), byte(0x80 | (c >> 6 & 0x3f)),
        byte(0x80 | (c & 0x3f));
  }
}

std::string beginning(std::string_view text, std::size_t count) {
  std::size_t end = count < text.size() ? count : text.size();
  while (end > 0 && end < text.size() && is_continuation(text[end])) --end;
  return std::string(text.substr(0, end));
}

std::string in_quotes(std::string_view text) {
  std::string shown = "'";
  for (const char c : beginning(text, kShown)) {
    const auto code = static_cast<unsigned char>(c);
    char escape[8];
    std::snprintf(escape, sizeof escape, "\\x%02x", static_cast<unsigned>(code));
    shown += code < 0x20 || code == 0x7f ? std::string(escape) : std::string(1, c);
  }
  return shown + (text.size() > kShown ? "...'" : "'");
}

std::string digits_of(float value) { return shortest(value); }
std::string digits_of(double value) { return shortest(value); }

}  // namespace destseg_core
