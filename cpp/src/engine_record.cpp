#include "engine_record.hpp"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <stdexcept>
#include <vector>

#include "error.hpp"

namespace destseg_core {
namespace {

enum class Type { text, text_or_null, texts, count, seconds };

struct Entry {
  const char *name;
  Type type;
  bool optional = false;
};

// EngineRecord of Python, in its order.
constexpr Entry kEntries[] = {
    {"key", Type::text},          {"builder", Type::text},
    {"version", Type::text},      {"gpu", Type::text_or_null},
    {"targets", Type::texts},     {"onnx", Type::text},
    {"onnx_sha256", Type::text},  {"flags", Type::texts},
    {"convolutions", Type::count}, {"half_convolutions", Type::count},
    {"precision_source", Type::text}, {"build_seconds", Type::seconds},
    {"architecture", Type::text_or_null, true},
};

class RecordError : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

std::string title(const std::string &builder) {
  if (builder == "tensorrt") return "TensorRT";
  return builder == "tensorrt-rtx" ? "TensorRT-RTX" : builder;
}

bool is_text(const Json &value) { return value.kind == Json::Kind::string; }

bool fits(const Json &value, Type type) {
  switch (type) {
    case Type::text: return is_text(value);
    case Type::text_or_null: return is_text(value) || value.kind == Json::Kind::null;
    case Type::texts:
      return value.kind == Json::Kind::array &&
             std::all_of(value.items.begin(), value.items.end(), is_text);
    case Type::count: return value.kind == Json::Kind::integer && value.number >= 0;
    case Type::seconds:
      return (value.kind == Json::Kind::integer || value.kind == Json::Kind::number) &&
             std::isfinite(value.number) && value.number >= 0;
  }
  return false;
}

const char *name_of(Type type) {
  switch (type) {
    case Type::text: return "text";
    case Type::text_or_null: return "text or null";
    case Type::texts: return "a list of text";
    case Type::count: return "a count";
    case Type::seconds: return "seconds";
  }
  return "";
}

void check_names(const Json &engine) {
  std::vector<std::string> unknown;
  for (const auto &given : engine.entries) {
    const auto same = [&](const Entry &entry) { return given.first == entry.name; };
    if (std::none_of(std::begin(kEntries), std::end(kEntries), same))
      unknown.push_back(given.first);
  }
  if (!unknown.empty())
    throw RecordError("unknown entry " +
                      python_repr(*std::min_element(unknown.begin(), unknown.end())));
  for (const Entry &entry : kEntries)
    if (!entry.optional && engine.find(entry.name) == nullptr)
      throw RecordError("entry " + python_repr(std::string_view(entry.name)) + " is missing");
}

// Names, types and ranges, in the order in which Python checks them.
void check_record(const Json &engine) {
  check_names(engine);
  for (const auto &[name, value] : engine.entries) {
    const auto entry = std::find_if(std::begin(kEntries), std::end(kEntries),
                                    [&, &found = name](const Entry &e) { return found == e.name; });
    if (!fits(value, entry->type))
      throw RecordError(name + " is " + python_repr(value) + ", expected " +
                        name_of(entry->type));
  }
  if (engine.find("half_convolutions")->number > engine.find("convolutions")->number)
    throw RecordError("half_convolutions is more than convolutions");
  const std::string &source = engine.find("precision_source")->text;
  if (source != "engine" && source != "network")
    throw RecordError("precision_source is " + python_repr(source) +
                      ", not of ('engine', 'network')");
}

const Json &record_of(const Spec &spec) {
  if (spec.kind != "engine")
    throw spec_error(spec.artifact.file + ": its spec says " + spec.kind +
                     ", expected engine. Copy the .json that was written with the engine.");
  const Json &engine = *spec.json.find("engine");
  try {
    check_record(engine);
  } catch (const RecordError &error) {
    throw spec_error(spec.artifact.file + ": the engine entry of its spec cannot be read (" +
                     error.what() + "). Rebuild it: " + rebuild_command(spec));
  }
  return engine;
}

std::string joined(const Json &texts) {
  std::string text;
  for (const Json &item : texts.items) text += (text.empty() ? "" : ", ") + item.text;
  return text;
}

}  // namespace

std::string rebuild_command(const Spec &spec) {
  std::string command = "destseg-export --category " + spec.category + " --format engine";
  if (spec.precision != "fp16")  // what the command makes unless told otherwise
    command += " --precision " + spec.precision;
  const Json *builder = spec.json.find("engine")->find("builder");
  if (builder != nullptr && is_text(*builder) && builder->text == "tensorrt-rtx")
    command += " --builder tensorrt-rtx";
  return command;
}

void check_engine(const Spec &spec, const Machine &machine) {
  const Json &record = record_of(spec);
  const std::string &builder = record.find("builder")->text;
  const std::string &version = record.find("version")->text;
  const Json &gpu = *record.find("gpu");
  const auto &targets = record.find("targets")->items;
  const bool target = std::any_of(targets.begin(), targets.end(),
                                  [&](const Json &item) { return item.text == machine.sm; });
  const bool same_builder = builder == machine.builder && version == machine.version;
  const bool same_gpu = gpu.kind == Json::Kind::null || gpu.text == machine.gpu;
  if (same_builder && target && same_gpu) return;
  const bool named = target && !gpu.text.empty();
  throw spec_error(spec.artifact.file + ": built for " + joined(*record.find("targets")) +
                   (named ? " (" + gpu.text + ")" : "") + " by " + title(builder) + " " + version +
                   ", this machine has " + machine.sm + (named ? " (" + machine.gpu + ")" : "") +
                   " and " + title(machine.builder) + " " + machine.version +
                   ". Engines are not portable; rebuild it here: " + rebuild_command(spec));
}

}  // namespace destseg_core
