#include "digest.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <utility>
#include <vector>

#include "sha256.hpp"

namespace destseg_core {
namespace {

using Member = std::pair<std::string, Json>;

constexpr double kExact = 9007199254740992.0;  // 2^53: below, a double holds every whole number

void append_characters(std::string &bytes, const std::string &text) {
  bytes += "s" + std::to_string(text.size()) + ":" + text;
}

// A whole number as one, however it is written; any other as the bits of its double.
void append_value(std::string &bytes, const Json &value) {
  if (std::fabs(value.number) < kExact && value.number == std::floor(value.number)) {
    bytes += "i" + std::to_string(static_cast<std::int64_t>(value.number)) + ";";
  } else if (value.kind == Json::Kind::integer) {
    bytes += "i" + value.text + ";";
  } else {
    std::uint64_t bits = 0;
    std::memcpy(&bits, &value.number, sizeof bits);
    char digits[20];
    std::snprintf(digits, sizeof digits, "d%016llx;", static_cast<unsigned long long>(bits));
    bytes += digits;
  }
}

void append(std::string &bytes, const Json &value);

void append_object(std::string &bytes, std::vector<const Member *> entries) {
  std::sort(entries.begin(), entries.end(),
            [](const Member *left, const Member *right) { return left->first < right->first; });
  bytes += '{';
  for (const Member *entry : entries) {
    append_characters(bytes, entry->first);
    append(bytes, entry->second);
  }
  bytes += '}';
}

void append(std::string &bytes, const Json &value) {
  switch (value.kind) {
    case Json::Kind::null: bytes += 'n'; return;
    case Json::Kind::boolean: bytes += value.boolean ? 't' : 'f'; return;
    case Json::Kind::integer:
    case Json::Kind::number: return append_value(bytes, value);
    case Json::Kind::string: return append_characters(bytes, value.text);
    case Json::Kind::array:
      bytes += '[';
      for (const Json &item : value.items) append(bytes, item);
      bytes += ']';
      return;
    case Json::Kind::object: break;
  }
  std::vector<const Member *> entries;
  for (const Member &entry : value.entries) entries.push_back(&entry);
  append_object(bytes, std::move(entries));
}

std::string hash(const std::string &bytes) {
  Sha256 digest;
  digest.update(reinterpret_cast<const unsigned char *>(bytes.data()), bytes.size());
  return digest.finish();
}

}  // namespace

std::string encode(const Json &value) {
  std::string bytes;
  append(bytes, value);
  return bytes;
}

Digest read_digest(const Json &entry) {
  return {entry.find("rest")->text, entry.find("threshold")->text, entry.find("both")->text};
}

Digest digest_of(const Json &data) {
  std::vector<const Member *> rest;
  for (const Member &entry : data.entries)
    if (entry.first != "threshold" && entry.first != "digest") rest.push_back(&entry);
  std::string bytes;
  append_object(bytes, std::move(rest));
  const std::string first = hash(bytes), second = hash(encode(*data.find("threshold")));
  return {first, second, hash(first + second)};
}

bool is_whole(const Digest &digest) {
  return digest.both == hash(digest.rest + digest.threshold);
}

}  // namespace destseg_core
