#include "spec.hpp"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <fstream>
#include <iterator>
#include <limits>
#include <vector>

#include "error.hpp"
#include "sha256.hpp"

namespace destseg_core {
namespace {

using Names = std::vector<std::string>;
constexpr const char *kResize = "bilinear-antialiased-16bit";

// An object whose entries are taken by name: all that are expected, and no others.
class Reader {
 public:
  Reader(const Json &object, std::string where, const Names &names)
      : object_(object), where_(std::move(where)) {
    Names unknown;
    for (const auto &entry : object.entries)
      if (std::find(names.begin(), names.end(), entry.first) == names.end())
        unknown.push_back(entry.first);
    if (!unknown.empty())
      throw spec_error(where_ + ": unknown entry " +
                       python_repr(*std::min_element(unknown.begin(), unknown.end())) +
                       ". Export again with this version.");
    for (const std::string &name : names)
      if (object.find(name) == nullptr)
        throw spec_error(where_ + ": entry " + python_repr(name) +
                         " is missing. Restore it or export again.");
  }

  std::string text(const char *name) const {
    return typed(name, Json::Kind::string, "str").text;
  }

  std::int64_t integer(const char *name) const {
    const std::string &digits = typed(name, Json::Kind::integer, "int").text;
    std::int64_t value = 0;
    const auto end = digits.data() + digits.size();
    if (std::from_chars(digits.data(), end, value).ec == std::errc::result_out_of_range)
      value = digits[0] == '-' ? std::numeric_limits<std::int64_t>::min()
                               : std::numeric_limits<std::int64_t>::max();
    return value;
  }

  const std::string &digits(const char *name) const { return object_.find(name)->text; }

  double number(const char *name) const { return finite(name, *object_.find(name)); }

  void numbers(const char *name, const char *type, std::size_t count) const {
    const Json &value = typed(name, Json::Kind::array, type);
    if (value.items.size() != count) mistyped(name, value, type);
    for (const Json &item : value.items) finite(name, item);
  }

  void dictionary(const char *name, const char *type) const {
    typed(name, Json::Kind::object, type);
  }

  bool is_null(const char *name) const { return object_.find(name)->kind == Json::Kind::null; }

  Reader child(const char *name, const char *type, const Names &names) const {
    return Reader(typed(name, Json::Kind::object, type), where_ + ": " + name, names);
  }

  // As Python: what hosts need to size buffers.
  int within(const char *name, std::int64_t most) const {
    const std::int64_t value = integer(name);
    if (value < 1 || value > most)
      throw spec_error(where_ + ": " + name + " is " + digits(name) + ", expected 1 to " +
                       std::to_string(most) + ". Restore it or export again.");
    return static_cast<int>(value);
  }

 private:
  [[noreturn]] void mistyped(const char *name, const Json &value, const char *type) const {
    throw spec_error(where_ + ": " + name + " is " + python_repr(value) + ", expected " + type +
                     ". Restore it or export again.");
  }

  const Json &typed(const char *name, Json::Kind kind, const char *type) const {
    const Json &value = *object_.find(name);
    if (value.kind != kind) mistyped(name, value, type);
    return value;
  }

  double finite(const char *name, const Json &value) const {
    const bool number = value.kind == Json::Kind::integer || value.kind == Json::Kind::number;
    if (!number || !std::isfinite(value.number)) mistyped(name, value, "float");
    return value.number;
  }

  const Json &object_;
  std::string where_;
};

void check_format(const Json &data, const std::string &where) {
  const Json *format = data.kind == Json::Kind::object ? data.find("format") : nullptr;
  if (format != nullptr && ((format->kind == Json::Kind::boolean && format->boolean) ||
                            format->number == kFormat))
    return;  // what equals 1 in Python passes here and is judged by its type later
  static const Json none;
  std::string found = python_repr(format == nullptr ? none : *format);
  switch (data.kind) {
    case Json::Kind::object: break;
    case Json::Kind::null: found = "'NoneType'"; break;
    case Json::Kind::boolean: found = "'bool'"; break;
    case Json::Kind::integer: found = "'int'"; break;
    case Json::Kind::number: found = "'float'"; break;
    case Json::Kind::string: found = "'str'"; break;
    case Json::Kind::array: found = "'list'"; break;
  }
  throw spec_error(where + ": format " + found + ", this version of destseg-deploy reads " +
                   std::to_string(kFormat) + ". Export again with this version.");
}

void check_choice(const std::string &value, const Names &choices, const std::string &what) {
  if (std::find(choices.begin(), choices.end(), value) != choices.end()) return;
  std::string listed;
  for (const std::string &choice : choices) listed += (listed.empty() ? "" : ", ") + choice;
  throw spec_error(what + " is " + python_repr(value) + ", expected one of " + listed +
                   ". Export again.");
}

void check_batch(const Reader &batch) {
  const auto least = batch.integer("min"), best = batch.integer("opt"), most = batch.integer("max");
  if (1 <= least && least <= best && best <= most) return;
  throw spec_error("batch " + batch.digits("min") + ":" + batch.digits("opt") + ":" +
                   batch.digits("max") + ": expected 1 <= MIN <= OPT <= MAX, such as 1:1:16, or 4 for always 4");
}

const Names kInput = {"height", "width", "batch", "name", "dtype", "layout", "color"};
const Names kBatch = {"min", "opt", "max"};

struct Input {
  std::string name, dtype, layout, color;
};

Input read_input(const Reader &spec) {
  const Reader input = spec.child("input", "InputSpec", kInput);
  input.integer("height"), input.integer("width");
  check_batch(input.child("batch", "BatchRange", kBatch));
  return {input.text("name"), input.text("dtype"), input.text("layout"), input.text("color")};
}

std::string read_network(const Reader &spec) {
  const Reader network =
      spec.child("network", "NetworkSpec", {"height", "width", "resize", "mean", "std"});
  network.integer("height"), network.integer("width");
  std::string resize = network.text("resize");
  network.numbers("mean", "tuple[float, float, float]", 3);
  network.numbers("std", "tuple[float, float, float]", 3);
  return resize;
}

const Names kOutput = {"height", "width", "top_k", "map_name", "score_name"};

void read_output(const Reader &data, Spec &spec) {
  const Reader output = data.child("output", "OutputSpec", kOutput);
  output.integer("height"), output.integer("width"), output.integer("top_k");
  spec.map_name = output.text("map_name");
  spec.score_name = output.text("score_name");
}

FileRecord read_record(const Reader &spec, const char *name) {
  const Reader record = spec.child(name, "FileRecord", {"file", "sha256"});
  std::string file = record.text("file");
  return {std::move(file), record.text("sha256")};
}

std::optional<Threshold> read_threshold(const Reader &spec) {
  if (spec.is_null("threshold")) return std::nullopt;
  const Reader read = spec.child("threshold", "Threshold",
                                 {"score", "pixel", "rule", "images", "false_reject_rate"});
  Threshold threshold;
  threshold.score = read.number("score");
  threshold.pixel = read.number("pixel");
  threshold.rule = read.text("rule");
  threshold.images = read.integer("images");
  if (!read.is_null("false_reject_rate")) read.number("false_reject_rate");
  return threshold;
}

Size read_size(const Reader &part) {
  return {part.within("height", kMaxSide), part.within("width", kMaxSide)};
}

// After all that Python checks, so that what both refuse is refused for the same reason.
void read_sizes(const Reader &data, Spec &spec, const std::string &where) {
  const Reader input = data.child("input", "InputSpec", kInput);
  const Reader batch = input.child("batch", "BatchRange", kBatch);
  spec.input = read_size(input);
  spec.network = read_size(
      data.child("network", "NetworkSpec", {"height", "width", "resize", "mean", "std"}));
  const Reader output = data.child("output", "OutputSpec", kOutput);
  spec.map = read_size(output);
  spec.top_k = output.within("top_k", std::numeric_limits<int>::max());
  spec.batch = {batch.within("min", kMaxBatch), batch.within("opt", kMaxBatch),
                batch.within("max", kMaxBatch)};
  const std::int64_t pixels = static_cast<std::int64_t>(
      std::max(spec.input.pixels() * 3, spec.map.pixels() * sizeof(float)));
  if (pixels * spec.batch.max > kMaxCallBytes)
    throw spec_error(where + ": a batch of " + std::to_string(spec.batch.max) + " takes " +
                     std::to_string(pixels * spec.batch.max) + " bytes, expected at most " +
                     std::to_string(kMaxCallBytes) + ". Export again with a smaller --batch.");
}

Spec build(const Json &data, const std::string &where) {
  const Reader reader(data, where,
                      {"kind", "category", "precision", "input", "network", "output", "artifact",
                       "checkpoint", "threshold", "teacher", "training", "parity", "engine",
                       "tools", "format"});
  Spec spec;
  spec.kind = reader.text("kind");
  spec.category = reader.text("category");
  spec.precision = reader.text("precision");
  const Input input = read_input(reader);
  const std::string resize = read_network(reader);
  read_output(reader, spec);
  spec.artifact = read_record(reader, "artifact");
  read_record(reader, "checkpoint");
  spec.threshold = read_threshold(reader);
  for (const char *name : {"teacher", "training", "parity", "engine"})
    reader.dictionary(name, "dict[str, typing.Any]");
  reader.dictionary("tools", "dict[str, str]");
  reader.integer("format");
  check_choice(spec.kind, {"checkpoint", "onnx", "engine"}, where + ": kind");
  check_choice(spec.precision, {"fp32", "fp16", "bf16", "int8"}, where + ": precision");
  check_choice(resize, {kResize}, where + ": network.resize");
  check_choice(input.dtype, {"uint8"}, where + ": input.dtype");
  check_choice(input.layout, {"NHWC"}, where + ": input.layout");
  check_choice(input.color, {"RGB"}, where + ": input.color");
  spec.input_name = input.name;
  read_sizes(reader, spec, where);
  return spec;
}

// As Python opens text: every kind of line end becomes one newline.
std::string with_newlines(const std::string &bytes) {
  std::string text;
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    const bool end = bytes[i] == '\r';
    text += end ? '\n' : bytes[i];
    if (end && i + 1 < bytes.size() && bytes[i + 1] == '\n') ++i;
  }
  return text;
}

std::string read_text(const std::filesystem::path &path) {
  const auto refuse = [&](const std::string &why) {
    return spec_error(path.u8string() + ": cannot be read (" + why +
                      "). Restore it or export again.");
  };
  std::error_code code;
  if (!std::filesystem::is_regular_file(path, code)) throw refuse("it is no file");
  std::ifstream file(path, std::ios::binary);
  if (!file) throw refuse("it cannot be opened");
  std::string bytes;
  char part[4096];
  while (file.read(part, sizeof part), file.gcount() > 0) {
    bytes.append(part, static_cast<std::size_t>(file.gcount()));
    if (bytes.size() > kMaxJsonBytes) throw refuse("it has more than 4 MiB, no spec has");
  }
  if (file.bad()) throw refuse("the disk failed");
  try {
    decode_utf8(bytes);
  } catch (const JsonError &error) {
    throw refuse(error.what());
  }
  return bytes;
}

}  // namespace

double Threshold::normalized(double raw) const {
  if (raw > score) return std::min(1.0, 0.5 + 0.5 * (raw - score) / std::max(1 - score, 1e-6));
  return score > 0 ? std::max(0.0, 0.5 * raw / score) : 0.0;
}

Spec spec_from_json(const std::string &text, const std::string &where) {
  try {
    const Json data = parse_json(decode_utf8(text));
    check_format(data, where);
    Spec spec = build(data, where);
    spec.json = data;
    spec.text = text;
    return spec;
  } catch (const JsonError &error) {
    throw spec_error(where + ": not JSON (" + error.what() + "). Restore it or export again.");
  }
}

/* The .onnx that an engine was built from has the same name and lies beside it. */
static std::filesystem::path spec_path(std::filesystem::path artifact) {
  artifact.replace_extension(artifact.extension() == ".engine" ? ".engine.json" : ".json");
  return artifact;
}

Spec read_spec(const std::filesystem::path &artifact) {
  const std::filesystem::path path = spec_path(artifact);
  std::error_code code;
  if (!std::filesystem::exists(path, code))
    throw spec_error(artifact.u8string() + ": no spec " + path.filename().u8string() +
                     " beside it. Copy the .json that was written with the artifact, or make both "
                     "again with destseg-export.");
  return spec_from_json(with_newlines(read_text(path)), path.u8string());
}

void check_artifact(const Spec &spec, const std::filesystem::path &artifact) {
  const std::string found = sha256_of_file(artifact);
  if (found == spec.artifact.sha256) return;
  const std::filesystem::path path = spec_path(artifact);
  throw spec_error(artifact.u8string() + ": its content (sha256 " + found.substr(0, 12) +
                   ") is not what " + path.filename().u8string() + " describes (" +
                   spec.artifact.file + ", sha256 " + first_characters(spec.artifact.sha256, 12) +
                   "). The file is damaged or the pair was mixed up: copy both again, or rerun "
                   "destseg-export --category " + spec.category);
}

}  // namespace destseg_core
