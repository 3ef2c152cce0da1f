#include "spec_entries.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

#include "error.hpp"
#include "text.hpp"

namespace destseg_core {
namespace {

enum class Type {
  text,
  integer,
  number,
  texts,          // a list of text
  three_numbers,  // a list
  plain_values,   // an object of text, numbers and null
  text_values,    // an object of text
  number_values,  // an object of numbers
  free_values,    // an object of anything
  object,         // an object with a table of its own
};

struct Entry;
using Entries = std::vector<Entry>;

struct Entry {
  const char *name;
  Type type;
  bool nullable = false;
  const Entries *entries = nullptr;
  bool optional = false;  // may be missing
};

constexpr bool kNullable = true;

Entry object(const char *name, const Entries &entries, bool nullable = false) {
  return {name, Type::object, nullable, &entries};
}

// Written only where it is not null, so that older versions read all files without it.
Entry optional_object(const char *name, const Entries &entries) {
  return {name, Type::object, kNullable, &entries, true};
}

// Tables refer to each other, so that they are made on first use and in the right order.
const Entries &input_entries() {
  static const Entries batch = {
      {"min", Type::integer}, {"opt", Type::integer}, {"max", Type::integer}};
  static const Entries entries = {{"height", Type::integer}, {"width", Type::integer},
                                  object("batch", batch),    {"name", Type::text},
                                  {"dtype", Type::text},     {"layout", Type::text},
                                  {"color", Type::text}};
  return entries;
}

const Entries &parity_entries() {
  static const Entries budget = {
      {"anomaly_map", Type::number}, {"score", Type::number}, {"map_mean", Type::number}};
  static const Entries entries = {{"compared", Type::text},
                                  {"images", Type::text},
                                  {"count", Type::integer},
                                  {"map_max_abs", Type::number},
                                  {"score_max_abs", Type::number},
                                  {"control", Type::number},
                                  {"map_mean_abs", Type::number, kNullable},
                                  {"score_mean_abs", Type::number, kNullable},
                                  object("budget", budget, kNullable),
                                  {"rounding", Type::text, kNullable}};
  return entries;
}

const Entries &fusion_entries() {
  static const Entries entries = {{"fusions", Type::texts},
                                  object("parity", parity_entries()),
                                  {"macs_before", Type::integer, kNullable},
                                  {"macs_after", Type::integer, kNullable}};
  return entries;
}

const Entries &half_entries() {
  static const Entries entries = {{"convolutions", Type::integer},
                                  {"half_convolutions", Type::integer},
                                  {"fp32_parts", Type::texts},
                                  {"casts", Type::integer},
                                  {"weights", Type::integer},
                                  {"weights_zeroed", Type::integer},
                                  {"weights_subnormal", Type::integer},
                                  {"largest_tensor", Type::text, kNullable},
                                  {"largest_activation", Type::number, kNullable}};
  return entries;
}

const Entries &quantization_entries() {
  static const Entries accuracy = {{"pixel_ap", Type::number}, {"image_auroc", Type::number}};
  static const Entries entries = {{"quantiser", Type::text},
                                  {"scheme", Type::text},
                                  {"layers", Type::texts},
                                  {"given_back", Type::texts},
                                  {"share_of_macs", Type::number, kNullable},
                                  {"images", Type::text, kNullable},
                                  {"count", Type::integer, kNullable},
                                  object("fp32", accuracy, kNullable),
                                  object("int8", accuracy, kNullable),
                                  {"drop", Type::number, kNullable},
                                  {"max_drop", Type::number, kNullable},
                                  {"moved_alone", Type::number_values}};
  return entries;
}

const Entries &engine_entries() {
  static const Entries entries = {{"key", Type::text},
                                  {"builder", Type::text},
                                  {"version", Type::text},
                                  {"gpu", Type::text, kNullable},
                                  {"targets", Type::texts},
                                  {"onnx", Type::text},
                                  {"onnx_sha256", Type::text},
                                  {"flags", Type::texts},
                                  {"convolutions", Type::integer},
                                  {"half_convolutions", Type::integer},
                                  {"precision_source", Type::text},
                                  {"build_seconds", Type::number},
                                  {"architecture", Type::text, kNullable}};
  return entries;
}

const Entries &training_entries() {
  static const Entries entries = {{"recipe", Type::plain_values},
                                  {"data", Type::text, kNullable},
                                  {"images", Type::integer, kNullable},
                                  {"held_out", Type::texts},
                                  {"textures", Type::text, kNullable},
                                  {"device", Type::text, kNullable},
                                  {"precision", Type::text, kNullable},
                                  {"loop", Type::text, kNullable},
                                  {"seconds", Type::number, kNullable},
                                  {"losses", Type::number_values},
                                  {"identity", Type::text, kNullable}};
  return entries;
}

// What both formats have, up to and with the threshold.
Entries contract_entries() {
  static const Entries network = {{"height", Type::integer},
                                  {"width", Type::integer},
                                  {"resize", Type::text},
                                  {"mean", Type::three_numbers},
                                  {"std", Type::three_numbers}};
  static const Entries output = {{"height", Type::integer},
                                 {"width", Type::integer},
                                 {"top_k", Type::integer},
                                 {"map_name", Type::text},
                                 {"score_name", Type::text}};
  static const Entries file = {{"file", Type::text}, {"sha256", Type::text}};
  static const Entries threshold = {{"score", Type::number},
                                    {"pixel", Type::number},
                                    {"rule", Type::text},
                                    {"images", Type::integer},
                                    {"false_reject_rate", Type::number, kNullable}};
  return {{"kind", Type::text},
          {"category", Type::text},
          {"precision", Type::text},
          object("input", input_entries()),
          object("network", network),
          object("output", output),
          object("artifact", file),
          object("checkpoint", file),
          object("threshold", threshold, kNullable)};
}

const Entries &tiling_entries() {
  static const Entries entries = {{"scale", Type::number},
                                  {"overlap", Type::integer},
                                  {"tile_batch", Type::integer, kNullable}};
  return entries;
}

const Entries &region_entries() {
  static const Entries entries = {{"x", Type::integer},
                                  {"y", Type::integer},
                                  {"width", Type::integer},
                                  {"height", Type::integer},
                                  {"mask", Type::text, kNullable}};
  return entries;
}

const Entries &entries_of(int format) {
  static const Entries teacher = {{"source", Type::text},
                                  {"file", Type::text, kNullable},
                                  {"sha256", Type::text, kNullable}};
  static const Entries digest = {
      {"rest", Type::text}, {"threshold", Type::text}, {"both", Type::text}};
  static const Entries first = [] {
    Entries entries = contract_entries();
    for (const char *name : {"teacher", "training", "parity", "engine"})
      entries.push_back({name, Type::free_values});
    entries.push_back({"tools", Type::text_values});
    entries.push_back({"format", Type::integer});
    return entries;
  }();
  static const Entries second = [] {
    Entries entries = contract_entries();
    entries.push_back(object("teacher", teacher, kNullable));
    entries.push_back(object("training", training_entries(), kNullable));
    entries.push_back(object("parity", parity_entries(), kNullable));
    entries.push_back(object("fusion", fusion_entries(), kNullable));
    entries.push_back(object("half", half_entries(), kNullable));
    entries.push_back(object("quantization", quantization_entries(), kNullable));
    entries.push_back(object("engine", engine_entries(), kNullable));
    entries.push_back({"tools", Type::text_values});
    entries.push_back({"extra", Type::free_values});
    entries.push_back(object("digest", digest));
    entries.push_back({"format", Type::integer});
    entries.push_back(optional_object("tiling", tiling_entries()));
    entries.push_back(optional_object("region", region_entries()));
    return entries;
  }();
  return format == 1 ? first : second;
}

const char *name_of(Type type) {
  switch (type) {
    case Type::text: return "text";
    case Type::integer: return "a whole number";
    case Type::number: return "a number";
    case Type::texts: return "a list";
    case Type::three_numbers: return "a list with 3 entries";
    default: return "an object";
  }
}

[[noreturn]] void mistyped(const Json &value, Type type, const std::string &where) {
  throw spec_error(where + " is " + show(value) + ", expected " + name_of(type) +
                   ". Restore it or export again.");
}

// A whole number may be beyond every double, as in Python.
bool is_plain(const Json &value) {
  return value.kind == Json::Kind::string || value.kind == Json::Kind::null ||
         value.kind == Json::Kind::integer ||
         (value.kind == Json::Kind::number && std::isfinite(value.number));
}

// Check a value that holds no other; where it is of another type, say what was expected.
void check_plain(const Json &value, Type type, const std::string &where) {
  const bool integer = value.kind == Json::Kind::integer;
  const bool number = integer || value.kind == Json::Kind::number;
  const bool fits = type == Type::text      ? value.kind == Json::Kind::string
                    : type == Type::integer ? integer
                                            : number && std::isfinite(value.number);
  if (!fits) mistyped(value, type, where);
}

void check_object(const Json &data, const Entries &entries, const std::string &where);

void check_values(const Json &value, Type type, const std::string &where) {
  for (const auto &[name, item] : value.entries) {
    const std::string place = where + ": " + in_quotes(name);
    if (type == Type::text_values) check_plain(item, Type::text, place);
    if (type == Type::number_values) check_plain(item, Type::number, place);
    if (type == Type::plain_values && !is_plain(item)) mistyped(item, Type::integer, place);
  }
}

void check_value(const Json &value, const Entry &entry, const std::string &where) {
  if (entry.nullable && value.kind == Json::Kind::null) return;
  switch (entry.type) {
    case Type::text:
    case Type::integer:
    case Type::number: return check_plain(value, entry.type, where);
    case Type::texts:
    case Type::three_numbers:
      if (value.kind != Json::Kind::array ||
          (entry.type == Type::three_numbers && value.items.size() != 3))
        mistyped(value, entry.type, where);
      for (const Json &item : value.items)
        check_plain(item, entry.type == Type::texts ? Type::text : Type::number, where);
      return;
    default:
      if (value.kind != Json::Kind::object) mistyped(value, entry.type, where);
      if (entry.entries != nullptr) return check_object(value, *entry.entries, where);
      check_values(value, entry.type, where);
  }
}

void check_object(const Json &data, const Entries &entries, const std::string &where) {
  std::vector<std::string> unknown;
  for (const auto &given : data.entries) {
    const auto same = [&](const Entry &entry) { return given.first == entry.name; };
    if (std::none_of(entries.begin(), entries.end(), same)) unknown.push_back(given.first);
  }
  if (!unknown.empty())
    throw spec_error(where + ": unknown entry " +
                     in_quotes(*std::min_element(unknown.begin(), unknown.end())) +
                     ". Export again with this version, or install the version that wrote it.");
  for (const Entry &entry : entries)
    if (data.find(entry.name) == nullptr && !entry.optional)
      throw spec_error(where + ": entry " + in_quotes(entry.name) +
                       " is missing. Restore it or export again.");
  for (const Entry &entry : entries)
    if (const Json *given = data.find(entry.name))
      check_value(*given, entry, where + ": " + entry.name);
}

}  // namespace

void check_entries(const Json &data, int format, const std::string &where) {
  check_object(data, entries_of(format), where);
}

void check_engine_entries(const Json &engine, const std::string &where) {
  Json filled = engine;
  if (filled.find("architecture") == nullptr) filled.entries.emplace_back("architecture", Json{});
  check_object(filled, engine_entries(), where);
}

}  // namespace destseg_core
