#include "contract.hpp"

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "digest.hpp"
#include "error.hpp"
#include "text.hpp"

namespace destseg_core {
namespace {

// The messages of onnx.proto3 on the way to a tensor.
enum class Message { model, training, graph, function, node, attribute, sparse, tensor };

struct Nested {
  Message outer;
  std::uint64_t number;
  Message inner;
};

constexpr Nested kNested[] = {
    {Message::model, 7, Message::graph},       {Message::model, 20, Message::training},
    {Message::model, 25, Message::function},   {Message::training, 1, Message::graph},
    {Message::training, 2, Message::graph},    {Message::graph, 1, Message::node},
    {Message::graph, 5, Message::tensor},      {Message::graph, 15, Message::sparse},
    {Message::function, 7, Message::node},     {Message::function, 11, Message::attribute},
    {Message::node, 5, Message::attribute},    {Message::attribute, 5, Message::tensor},
    {Message::attribute, 6, Message::graph},   {Message::attribute, 10, Message::tensor},
    {Message::attribute, 11, Message::graph},  {Message::attribute, 22, Message::sparse},
    {Message::attribute, 23, Message::sparse}, {Message::sparse, 1, Message::tensor},
    {Message::sparse, 2, Message::tensor}};

constexpr std::uint64_t kMetadata = 14, kTensorName = 8, kExternalData = 13, kDataLocation = 14;

struct Field {
  std::uint64_t number = 0, value = 0;
  std::string_view inside;
};

// Fields of a message, up to the end or the first byte that is none: damage is for the runtime to
// refuse, which reads the file by the same rules.
class Reader {
 public:
  explicit Reader(std::string_view message) : left_(message) {}

  bool next(Field &field) {
    std::uint64_t tag = 0, size = 0;
    if (!take_number(tag)) return false;
    field = {tag >> 3, 0, {}};
    switch (tag & 7) {
      case 0: return take_number(field.value);
      case 1: size = 8; break;
      case 2:
        if (!take_number(size)) return false;
        break;
      case 5: size = 4; break;
      default: return false;  // groups, which ONNX does not have
    }
    if (size > left_.size()) return false;
    if ((tag & 7) == 2) field.inside = left_.substr(0, static_cast<std::size_t>(size));
    left_.remove_prefix(static_cast<std::size_t>(size));
    return true;
  }

 private:
  // Seven bits a byte, the lowest first.
  bool take_number(std::uint64_t &value) {
    value = 0;
    for (int shift = 0; shift < 70 && !left_.empty(); shift += 7) {
      const auto byte = static_cast<unsigned char>(left_.front());
      left_.remove_prefix(1);
      if (shift < 64) value |= std::uint64_t{byte & 0x7fu} << shift;
      if (byte < 0x80) return true;
    }
    return false;
  }

  std::string_view left_;
};

void check_place(std::string_view tensor, const std::filesystem::path &path) {
  Reader reader(tensor);
  Json name;
  name.kind = Json::Kind::string;
  bool outside = false;
  for (Field field; reader.next(field);) {
    if (field.number == kTensorName) name.text = field.inside;
    outside = outside || field.number == kExternalData ||
              (field.number == kDataLocation && field.value == 1);
  }
  if (outside)
    throw spec_error(path.u8string() + ": its tensor " + show(name) + " lies in another file (ONNX "
                     "external data), which no hash covers. Export again: an artifact is one "
                     "file.");
}

std::optional<std::string> contract_in(std::string_view entry) {
  std::string_view key, value;
  Reader reader(entry);
  for (Field field; reader.next(field);) {
    if (field.number == 1) key = field.inside;
    if (field.number == 2) value = field.inside;
  }
  return key == "destseg" ? std::optional<std::string>(value) : std::nullopt;
}

// The contract in a file, after a look at each tensor's place.
std::optional<std::string> read_onnx(std::string_view content, const std::filesystem::path &path) {
  std::optional<std::string> stored;
  std::vector<std::pair<Message, std::string_view>> waiting{{Message::model, content}};
  while (!waiting.empty()) {
    const auto [kind, message] = waiting.back();
    waiting.pop_back();
    if (kind == Message::tensor) check_place(message, path);
    Reader reader(message);
    for (Field field; reader.next(field);) {
      if (kind == Message::model && field.number == kMetadata)
        if (auto found = contract_in(field.inside)) stored = std::move(found);
      for (const Nested &nested : kNested)
        if (nested.outer == kind && nested.number == field.number)
          waiting.emplace_back(nested.inner, field.inside);
    }
  }
  return stored;
}

std::string read_bytes(const std::filesystem::path &path) {
  std::ifstream file(path, std::ios::binary);
  std::string content(static_cast<std::size_t>(std::filesystem::file_size(path)), '\0');
  if (!file.read(content.data(), static_cast<std::streamsize>(content.size())))
    throw spec_error(path.u8string() + ": cannot be read. Check the disk.");
  return content;
}

Json parse(const std::string &text, const std::filesystem::path &path) {
  Json own;
  try {
    own = parse_json(decode_utf8(text));
  } catch (const JsonError &) {  // as if it were no object
  }
  if (own.kind != Json::Kind::object)
    throw spec_error(path.u8string() +
                     ": its metadata 'destseg' is not a contract. Make it again.");
  return own;
}

[[noreturn]] void refuse(const char *name, const Json &said, const Json &given,
                         const std::filesystem::path &artifact) {
  throw spec_error(artifact.u8string() + ": says of itself that its " + name + " is " +
                   show(said) + ", its spec says " + show(given) +
                   ". The spec was edited or belongs to another file: copy both again, or make "
                   "them again.");
}

// What an artifact has only where its spec has it, too.
void check_optional(const Json &own, const Spec &spec, const std::filesystem::path &artifact) {
  static const Json none;
  for (const char *name : {"tiling", "region"}) {
    const Json *said = own.find(name), *given = spec.json.find(name);
    if (said == nullptr) said = &none;
    if (given == nullptr) given = &none;
    if (encode(*said) != encode(*given)) refuse(name, *said, *given, artifact);
  }
}

}  // namespace

void check_contract(const Spec &spec, const std::filesystem::path &artifact) {
  if (spec.kind != "onnx" || suffix_of(artifact) != ".onnx") return;
  const std::string content = read_bytes(artifact);
  const std::optional<std::string> stored = read_onnx(content, artifact);
  if (!stored) return;
  const Json own = parse(*stored, artifact);
  for (const char *name : {"category", "precision", "input", "network", "output", "checkpoint"}) {
    const Json *const said = own.find(name), *const given = spec.json.find(name);
    if (said != nullptr && encode(*said) != encode(*given))
      refuse(name, *said, *given, artifact);
  }
  check_optional(own, spec, artifact);
}

}  // namespace destseg_core
