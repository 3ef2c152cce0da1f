// Text as Python reads and shows it: UTF-8 with its errors, and repr().
#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>

#include "json.hpp"

namespace destseg_core {
namespace {

[[noreturn]] void not_utf8(unsigned char byte, std::size_t at, const char *why) {
  char code[8];
  std::snprintf(code, sizeof code, "0x%02x", byte);
  throw JsonError(std::string("'utf-8' codec can't decode byte ") + code + " in position " +
                  std::to_string(at) + ": " + why);
}

// How many bytes follow a first byte, and the smallest and largest second byte (RFC 3629).
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

std::string float_repr(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
  char shortest[40];
  const auto end =
      std::to_chars(shortest, shortest + sizeof shortest, value, std::chars_format::scientific).ptr;
  const std::string text(shortest, end);
  const int exponent = std::stoi(text.substr(text.find('e') + 1));
  if (exponent < -4 || exponent >= 16) return text;  // 1e-05 and 1e+16, as Python writes them
  char fixed[64];
  const auto fixed_end =
      std::to_chars(fixed, fixed + sizeof fixed, value, std::chars_format::fixed).ptr;
  std::string plain(fixed, fixed_end);
  return plain.find('.') == std::string::npos ? plain + ".0" : plain;
}

// Decode what this library encoded itself: lone surrogates included.
char32_t next_character(std::string_view text, std::size_t &at) {
  const auto first = static_cast<unsigned char>(text[at++]);
  const int following = first < 0xc0 ? 0 : first < 0xe0 ? 1 : first < 0xf0 ? 2 : 3;
  char32_t value = following == 0 ? first : first & (0x3f >> following);
  for (int i = 0; i < following && at < text.size(); ++i)
    value = value << 6 | (static_cast<unsigned char>(text[at++]) & 0x3f);
  return value;
}

void append_escaped(std::string &shown, char32_t c, char quote) {
  const auto code = static_cast<unsigned>(c);
  char escape[16];
  if (c == U'\n') {
    shown += "\\n";
  } else if (c == U'\r') {
    shown += "\\r";
  } else if (c == U'\t') {
    shown += "\\t";
  } else if (c == U'\\' || c == static_cast<char32_t>(quote)) {
    shown += '\\', append_utf8(shown, c);
  } else if (c < 0x20 || (c >= 0x7f && c <= 0xa0) || c == 0xad) {
    std::snprintf(escape, sizeof escape, "\\x%02x", code);
    shown += escape;
  } else if (c >= 0xd800 && c < 0xe000) {
    std::snprintf(escape, sizeof escape, "\\u%04x", code);
    shown += escape;
  } else {
    append_utf8(shown, c);
  }
}

}  // namespace

std::u32string decode_utf8(std::string_view bytes) {
  std::u32string text;
  text.reserve(bytes.size());
  for (std::size_t at = 0; at < bytes.size();) {
    const auto first = static_cast<unsigned char>(bytes[at]);
    const Sequence sequence = sequence_of(first);
    if (first >= 0x80 && sequence.following == 0) not_utf8(first, at, "invalid start byte");
    char32_t value = first < 0x80 ? first : first & (0x3f >> sequence.following);
    for (int i = 1; i <= sequence.following; ++i) {
      const std::size_t place = at + static_cast<std::size_t>(i);
      if (place >= bytes.size()) not_utf8(first, at, "unexpected end of data");
      const auto next = static_cast<unsigned char>(bytes[place]);
      const bool second = i == 1;
      if (next < (second ? sequence.low : 0x80) || next > (second ? sequence.high : 0xbf))
        not_utf8(first, at, "invalid continuation byte");
      value = value << 6 | (next & 0x3f);
    }
    text += value;
    at += 1 + static_cast<std::size_t>(sequence.following);
  }
  return text;
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

std::string python_repr(std::string_view text) {
  const bool apostrophe = text.find('\'') != std::string_view::npos;
  const char quote = apostrophe && text.find('"') == std::string_view::npos ? '"' : '\'';
  std::string shown(1, quote);
  for (std::size_t at = 0; at < text.size();) append_escaped(shown, next_character(text, at), quote);
  return shown + quote;
}

std::string first_characters(std::string_view text, std::size_t count) {
  std::size_t end = 0;
  for (std::size_t i = 0; i < count && end < text.size(); ++i) next_character(text, end);
  return std::string(text.substr(0, end));
}

std::string python_repr(const Json &value) {
  switch (value.kind) {
    case Json::Kind::null: return "None";
    case Json::Kind::boolean: return value.boolean ? "True" : "False";
    case Json::Kind::integer: return value.text;
    case Json::Kind::number: return float_repr(value.number);
    case Json::Kind::string: return python_repr(value.text);
    case Json::Kind::array: break;
    case Json::Kind::object: break;
  }
  const bool array = value.kind == Json::Kind::array;
  std::string shown = array ? "[" : "{";
  for (const Json &item : value.items)
    shown += (shown.size() > 1 ? ", " : "") + python_repr(item);
  for (const auto &[name, item] : value.entries)
    shown += (shown.size() > 1 ? ", " : "") + python_repr(name) + ": " + python_repr(item);
  return shown + (array ? "]" : "}");
}

}  // namespace destseg_core
