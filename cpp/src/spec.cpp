#include "spec.hpp"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <fstream>
#include <initializer_list>
#include <limits>
#include <utility>
#include <vector>

#include "contract.hpp"
#include "digest.hpp"
#include "error.hpp"
#include "sha256.hpp"
#include "spec_entries.hpp"
#include "text.hpp"

namespace destseg_core {
namespace {

using Names = std::vector<std::string>;
constexpr const char *kSetAgain =
    "Write \"threshold\": null into the file, then set it again: destseg-threshold ARTIFACT "
    "--good FOLDER";
constexpr const char *kByHand = "set by hand";
constexpr const char *kResize = "bilinear-antialiased-16bit";

// The entry at a path; its type was checked before.
const Json &at(const Json &data, std::initializer_list<const char *> path) {
  const Json *value = &data;
  for (const char *name : path) value = value->find(name);
  return *value;
}

std::string name_of(std::initializer_list<const char *> path) {
  std::string name;
  for (const char *part : path) name += std::string(": ") + part;
  return name;
}

int check_format(const Json &data, const std::string &where) {
  if (data.kind != Json::Kind::object)
    throw spec_error(where + ": " + show(data) +
                     " is not a spec, expected an object. Restore it or export again.");
  static const Json none;
  const Json *entry = data.find("format");
  const Json &format = entry == nullptr ? none : *entry;
  for (const int known : {1, kFormat})
    if (format.kind == Json::Kind::integer && format.number == known) return known;
  throw spec_error(where + ": format is " + show(format) +
                   ", this version of destseg-deploy reads 1 and " + std::to_string(kFormat) +
                   ". Install the version that wrote it, or export again with this one.");
}

void check_choice(const Json &data, std::initializer_list<const char *> path, const Names &choices,
                  const std::string &where) {
  const Json &value = at(data, path);
  if (std::find(choices.begin(), choices.end(), value.text) != choices.end()) return;
  std::string listed;
  for (const std::string &choice : choices) listed += (listed.empty() ? "" : " or ") + choice;
  throw spec_error(where + name_of(path) + " is " + show(value) + ", expected " + listed +
                   ". Export again.");
}

bool is_record(const Json &data, const char *name) {
  const Json *value = data.find(name);
  return value != nullptr && value->kind == Json::Kind::object && !value->entries.empty();
}

// A whole number; one beyond 64 bit becomes the nearest that is not.
std::int64_t whole(const Json &value) {
  std::int64_t number = 0;
  const std::string &digits = value.text;
  const auto result = std::from_chars(digits.data(), digits.data() + digits.size(), number);
  if (result.ec != std::errc::result_out_of_range) return number;
  return digits[0] == '-' ? std::numeric_limits<std::int64_t>::min()
                          : std::numeric_limits<std::int64_t>::max();
}

std::int64_t within(const Json &data, std::initializer_list<const char *> path, std::int64_t least,
                    std::int64_t most, const std::string &where) {
  const Json &value = at(data, path);
  const std::int64_t number = whole(value);
  if (number < least || number > most)
    throw spec_error(where + name_of(path) + " is " + show(value) + ", expected " +
                     std::to_string(least) + " to " + std::to_string(most) +
                     ". Restore it or export again.");
  return number;
}

void check_batch(const Json &data, const std::string &where) {
  const Json &batch = at(data, {"input", "batch"});
  const Json &least = at(batch, {"min"}), &best = at(batch, {"opt"}), &most = at(batch, {"max"});
  if (1 <= whole(least) && whole(least) <= whole(best) && whole(best) <= whole(most)) return;
  throw spec_error(where + ": input: batch: batch " + show(least) + ":" + show(best) + ":" +
                   show(most) + ": expected 1 <= MIN <= OPT <= MAX, such as 1:1:16, or 4 for "
                   "always 4");
}

// Text that is not empty and stays on its line.
bool is_text(const std::string &text) {
  for (std::size_t i = 0; i < text.size(); ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    const auto next = i + 1 < text.size() ? static_cast<unsigned char>(text[i + 1]) : 0;
    if (byte < 0x20 || byte == 0x7f || (byte == 0xc2 && next >= 0x80 && next < 0xa0)) return false;
  }
  return !text.empty();
}

void check_text(const Json &data, std::initializer_list<const char *> path,
                const std::string &where) {
  const Json &value = at(data, path);
  if (!is_text(value.text))
    throw spec_error(where + name_of(path) + " is " + show(value) +
                     ", expected text without control characters. Restore it or export again.");
}

// A path could lead out of the spec's folder.
void check_name(const Json &data, std::initializer_list<const char *> path,
                const std::string &where) {
  const Json &value = at(data, path);
  const std::string &name = value.text;
  if (!is_text(name) || name == "." || name == ".." ||
      name.find_first_of("/\\:") != std::string::npos)
    throw spec_error(where + name_of(path) + " is " + show(value) +
                     ", expected a plain file name. Restore it or export again.");
}

// A score or a map value.
void check_share(const Json &data, std::initializer_list<const char *> path,
                 const std::string &where) {
  const Json &value = at(data, path);
  if (!(value.number >= 0 && value.number <= 1))
    throw spec_error(where + name_of(path) + " is " + show(value) +
                     ", expected a number from 0 to 1, as scores are. " + kSetAgain);
}

Size read_size(const Json &data, const char *part, std::int64_t most, const std::string &where) {
  const int height = static_cast<int>(within(data, {part, "height"}, 1, most, where));
  return {height, static_cast<int>(within(data, {part, "width"}, 1, most, where))};
}

void read_input(const Json &data, Spec &spec, const std::string &where) {
  check_text(data, {"input", "name"}, where);
  check_choice(data, {"input", "dtype"}, {"uint8"}, where);
  check_choice(data, {"input", "layout"}, {"NHWC"}, where);
  check_choice(data, {"input", "color"}, {"RGB"}, where);
  spec.input = read_size(data, "input", kMaxSide, where);
  const auto count = [&](const char *name) {
    return static_cast<int>(within(data, {"input", "batch", name}, 1, kMaxBatch, where));
  };
  spec.batch.min = count("min");
  spec.batch.opt = count("opt");
  spec.batch.max = count("max");
}

// The values are constants of the graph; a spec that says others says a falsehood.
void check_constants(const Json &data, const char *name, const double (&built_in)[3],
                     const char *shown, const std::string &where) {
  const Json &value = at(data, {"network", name});
  for (std::size_t i = 0; i < 3; ++i)
    if (value.items[i].number != built_in[i])
      throw spec_error(where + ": network: " + name + " is " + show(value) + ", expected " + shown +
                       ", which is built into the network. Restore it or export again.");
}

void read_network(const Json &data, Spec &spec, const std::string &where) {
  spec.network = read_size(data, "network", kMaxNetworkSide, where);
  check_choice(data, {"network", "resize"}, {kResize}, where);
  check_constants(data, "mean", {0.485, 0.456, 0.406}, "[0.485, 0.456, 0.406]", where);
  check_constants(data, "std", {0.229, 0.224, 0.225}, "[0.229, 0.224, 0.225]", where);
}

std::string shown(Size size) {
  return std::to_string(size.width) + "x" + std::to_string(size.height);
}

// The number of tiles along an axis; see tile_positions in Python.
std::int64_t tiles(int length, int tile, std::int64_t overlap) {
  const std::int64_t step = tile - overlap;
  return 1 + (length - tile + step - 1) / step;
}

// The graph cuts and blends; only what it takes and gives is checked here.
void read_tiling(const Json &data, Spec &spec, const std::string &where) {
  spec.working = spec.network;
  if (!is_record(data, "tiling")) return;
  const double scale = at(data, {"tiling", "scale"}).number;
  if (!(scale > 0 && scale <= kMaxScale))
    throw spec_error(where + ": tiling: scale is " + show(at(data, {"tiling", "scale"})) +
                     ", expected more than 0 and at most 4. Restore it or export again.");
  const std::int64_t side = std::min(spec.network.height, spec.network.width);
  const std::int64_t overlap = within(data, {"tiling", "overlap"}, 0, side - 1, where);
  if (at(data, {"tiling", "tile_batch"}).kind != Json::Kind::null)
    within(data, {"tiling", "tile_batch"}, 1, kMaxTiles, where);
  const auto scaled = [&](int length) {
    return std::max(1, static_cast<int>(std::floor(length * scale + 0.5)));
  };
  spec.working = {scaled(spec.input.height), scaled(spec.input.width)};
  if (spec.working.height < spec.network.height || spec.working.width < spec.network.width)
    throw spec_error(where + ": tiling: a frame is " + shown(spec.working) +
                     " when scaled, smaller than a tile of " + shown(spec.network) +
                     ". Restore it or export again.");
  const std::int64_t count = tiles(spec.working.height, spec.network.height, overlap) *
                             tiles(spec.working.width, spec.network.width, overlap);
  if (count > kMaxTiles)
    throw spec_error(where + ": tiling: a frame has " + std::to_string(count) +
                     " tiles, expected at most " + std::to_string(kMaxTiles) +
                     ". Restore it or export again.");
}

// How many pixels of a scaled axis have their centres in a part of the frame's.
std::int64_t inside(std::int64_t start, std::int64_t length, int frame, int scaled) {
  std::int64_t count = 0;
  for (std::int64_t i = 0; i < scaled; ++i) {
    const std::int64_t at = (2 * i + 1) * frame / (2 * std::int64_t{scaled}) - start;
    count += at >= 0 && at < length;
  }
  return count;
}

// A rectangle in the frame. Its mask is the exporter's: the graph holds the pixels.
void check_region(const Json &data, const Spec &spec, const std::string &where) {
  if (!is_record(data, "region")) return;
  const auto check = [&](const char *first, const char *length, int side, int scaled) {
    const std::int64_t start = whole(at(data, {"region", first}));
    const std::int64_t size = whole(at(data, {"region", length}));
    if (start < 0 || size < 1 || start > side || size > side - start)
      throw spec_error(where + ": region: " + first + " is " + std::to_string(start) +
                       " and " + length + " " + std::to_string(size) +
                       ", expected a part of 0 to " + std::to_string(side) +
                       ", which the frame has. Restore it or export again.");
    return inside(start, size, side, scaled);
  };
  const std::int64_t columns = check("x", "width", spec.input.width, spec.working.width);
  const std::int64_t rows = check("y", "height", spec.input.height, spec.working.height);
  if (at(data, {"region", "mask"}).kind == Json::Kind::null && rows * columns < spec.top_k)
    throw spec_error(where + ": region: it holds " + std::to_string(rows * columns) +
                     " pixels of the map of " + shown(spec.working) + ", expected at least " +
                     std::to_string(spec.top_k) +
                     ", whose mean is the score. Choose a larger region.");
}

void read_output(const Json &data, Spec &spec, const std::string &where) {
  spec.map = read_size(data, "output", kMaxSide, where);
  const auto pixels = static_cast<std::int64_t>(spec.working.pixels());
  spec.top_k = static_cast<int>(within(data, {"output", "top_k"}, 1, pixels, where));
  check_text(data, {"output", "map_name"}, where);
  check_text(data, {"output", "score_name"}, where);
}

// What hosts allocate from: see kMaxCallBytes.
void check_memory(const Spec &spec, const std::string &where) {
  const bool tiled = !(spec.working == spec.network);
  const std::int64_t bytes = static_cast<std::int64_t>(
      std::max({spec.input.pixels() * 3, spec.map.pixels() * sizeof(float),
                tiled ? spec.working.pixels() * 3 * sizeof(float) : std::size_t{0}}));
  if (bytes * spec.batch.max > kMaxCallBytes)
    throw spec_error(where + ": a batch of " + std::to_string(spec.batch.max) + " takes " +
                     std::to_string(bytes * spec.batch.max) + " bytes, expected at most " +
                     std::to_string(kMaxCallBytes) + ". Export again with a smaller --batch.");
}

std::string pair(Size size) {
  return "(" + std::to_string(size.height) + ", " + std::to_string(size.width) + ")";
}

// Sizes that no checkpoint was trained with.
void check_checkpoint(const Spec &spec, bool framed, const std::string &where) {
  if (spec.kind != "checkpoint") return;
  for (const auto &[name, side] : {std::pair<const char *, int>{"height", spec.network.height},
                                   {"width", spec.network.width}})
    if (side % kNetworkStep != 0)
      throw spec_error(where + ": network: " + name + " is " + std::to_string(side) +
                       ", expected a multiple of " + std::to_string(kNetworkStep) +
                       ". Restore it or train again.");
  // With tiles or a region, the input is the frame, because both count its pixels.
  if (!((framed || spec.input == spec.network) && spec.map == spec.working))
    throw spec_error(where + ": network: its size is " + pair(spec.working) +
                     ", expected that of input " + pair(spec.input) + " and output " +
                     pair(spec.map) + ". Restore it or train again.");
}

void check_threshold(const Json &data, const std::string &where) {
  check_share(data, {"threshold", "score"}, where);
  check_share(data, {"threshold", "pixel"}, where);
  check_text(data, {"threshold", "rule"}, where);
  within(data, {"threshold", "images"}, 0, kMaxImages, where);
  const Json &rate = at(data, {"threshold", "false_reject_rate"});
  if (rate.kind != Json::Kind::null && !(rate.number > 0 && rate.number < 1))
    throw spec_error(where + ": threshold: false_reject_rate is " + show(rate) +
                     ", expected a number between 0 and 1. " + kSetAgain);
}

std::optional<Threshold> read_threshold(const Json &data, const std::string &where) {
  const Json &given = at(data, {"threshold"});
  if (given.kind == Json::Kind::null) return std::nullopt;
  check_threshold(data, where);
  Threshold threshold;
  threshold.score = at(given, {"score"}).number;
  threshold.pixel = at(given, {"pixel"}).number;
  threshold.rule = at(given, {"rule"}).text;
  threshold.images = whole(at(given, {"images"}));
  return threshold;
}

std::optional<EngineRecord> read_engine(const Json &data, const std::string &where) {
  if (!is_record(data, "engine")) {
    if (at(data, {"kind"}).text != "engine") return std::nullopt;
    throw spec_error(where + ": engine is null, but kind is engine. Copy the .json that was "
                     "written with the engine.");
  }
  const Json &given = at(data, {"engine"});
  check_choice(data, {"engine", "precision_source"}, {"engine", "network"}, where);
  check_name(data, {"engine", "onnx"}, where);
  const std::int64_t convolutions =
      within(data, {"engine", "convolutions"}, 0, kMaxConvolutions, where);
  within(data, {"engine", "half_convolutions"}, 0, convolutions, where);
  if (at(given, {"build_seconds"}).number < 0)
    throw spec_error(where + ": engine: build_seconds is negative. Build the engine again.");
  EngineRecord record;
  record.builder = at(given, {"builder"}).text;
  record.version = at(given, {"version"}).text;
  const Json &gpu = at(given, {"gpu"});
  if (gpu.kind == Json::Kind::string) record.gpu = gpu.text;
  for (const Json &target : at(given, {"targets"}).items) record.targets.push_back(target.text);
  return record;
}

Spec read_values(const Json &data, int format, const std::string &where) {
  Spec spec;
  check_choice(data, {"kind"}, {"checkpoint", "onnx", "engine"}, where);
  check_choice(data, {"precision"}, {"fp32", "fp16", "bf16", "int8"}, where);
  check_name(data, {"category"}, where);
  spec.kind = at(data, {"kind"}).text;
  spec.category = at(data, {"category"}).text;
  spec.precision = at(data, {"precision"}).text;
  read_input(data, spec, where);
  read_network(data, spec, where);
  read_tiling(data, spec, where);
  read_output(data, spec, where);
  spec.input_name = at(data, {"input", "name"}).text;
  spec.map_name = at(data, {"output", "map_name"}).text;
  spec.score_name = at(data, {"output", "score_name"}).text;
  check_name(data, {"artifact", "file"}, where);
  check_name(data, {"checkpoint", "file"}, where);
  spec.artifact = {at(data, {"artifact", "file"}).text, at(data, {"artifact", "sha256"}).text};
  spec.threshold = read_threshold(data, where);
  check_memory(spec, where);
  check_region(data, spec, where);
  check_checkpoint(spec, is_record(data, "tiling") || is_record(data, "region"), where);
  if (format != 1 && is_record(data, "quantization"))
    check_choice(data, {"quantization", "scheme"}, {"u8", "s8"}, where);
  spec.engine = read_engine(data, where);
  return spec;
}

// A threshold that is not as it was written was set by hand: its rule no longer vouches for it.
void mark_by_hand(Json &data, Spec &spec) {
  if (!spec.threshold) return;
  spec.threshold->rule = kByHand;
  spec.threshold->images = 0;
  for (auto &[name, threshold] : data.entries)
    if (name == "threshold")
      for (auto &[entry, value] : threshold.entries)
        if (entry == "rule") value.text = kByHand;
}

void check_digest(Json &data, Spec &spec, const std::string &where) {
  const Digest given = read_digest(at(data, {"digest"})), found = digest_of(data);
  if (given.rest != found.rest || !is_whole(given))
    throw spec_error(where + ": its digest does not fit: the file was damaged, or more of it was "
                     "edited than the threshold. Restore it or rerun " +
                     (spec.kind == "checkpoint" ? "destseg-train" : "destseg-export") +
                     " --category " + spec.category);
  if (given.threshold != found.threshold) mark_by_hand(data, spec);
}

Spec build(Json &data, const std::string &where) {
  const int format = check_format(data, where);
  check_entries(data, format, where);
  if (format == 1 && is_record(data, "engine"))
    check_engine_entries(at(data, {"engine"}), where + ": engine");
  check_batch(data, where);
  Spec spec = read_values(data, format, where);
  if (format != 1) check_digest(data, spec, where);
  return spec;
}

}  // namespace

std::string read_json_text(const std::filesystem::path &path) {
  const auto refuse = [&](const std::string &why) {
    return spec_error(path.u8string() + ": cannot be read (" + why +
                      "). Restore it or export again.");
  };
  std::error_code code;
  if (!std::filesystem::is_regular_file(path, code)) throw refuse("it is not a file");
  std::ifstream file(path, std::ios::binary);
  if (!file) throw refuse("it cannot be opened");
  std::string bytes;
  char part[4096];
  while (file.read(part, sizeof part), file.gcount() > 0) {
    bytes.append(part, static_cast<std::size_t>(file.gcount()));
    if (bytes.size() > kMaxJsonBytes) throw refuse("it has more than 4 MiB, and a spec has a few KiB");
  }
  if (file.bad()) throw refuse("the disk failed");
  bytes = to_utf8(bytes);
  try {
    decode_utf8(bytes);
  } catch (const JsonError &error) {
    throw refuse(error.what());
  }
  return bytes;
}

// The score is compared as float32, as for the verdict.
double Threshold::normalized(double raw) const {
  const double limit = static_cast<double>(static_cast<float>(score));
  if (raw > limit) return std::min(1.0, 0.5 + 0.5 * (raw - limit) / std::max(1 - limit, 1e-6));
  return limit > 0 ? std::max(0.0, 0.5 * raw / limit) : 0.0;
}

Spec spec_from_json(const std::string &text, const std::string &where) {
  try {
    Json data = parse_json(decode_utf8(text));
    Spec spec = build(data, where);
    spec.json = std::move(data);
    spec.text = text;
    return spec;
  } catch (const JsonError &error) {
    throw spec_error(where + ": not JSON (" + error.what() + "). Restore it or export again.");
  }
}

// The suffix differs for engines: the .onnx that an engine was built from has the same name.
static std::filesystem::path spec_path(std::filesystem::path artifact) {
  artifact.replace_extension(suffix_of(artifact) == ".engine" ? ".engine.json" : ".json");
  return artifact;
}

Spec read_spec(const std::filesystem::path &artifact) {
  const std::filesystem::path path = spec_path(artifact);
  std::error_code code;
  if (!std::filesystem::exists(path, code))
    throw spec_error(artifact.u8string() + ": no spec " + path.filename().u8string() +
                     " beside it. Copy the .json that was written with the artifact, or make both "
                     "again with destseg-export.");
  return spec_from_json(read_json_text(path), path.u8string());
}

void check_artifact(const Spec &spec, const std::filesystem::path &artifact) {
  const std::string found = sha256_of_file(artifact);
  if (found == spec.artifact.sha256) return check_contract(spec, artifact);
  const std::filesystem::path path = spec_path(artifact);
  throw spec_error(artifact.u8string() + ": its content (sha256 " + found.substr(0, 12) +
                   ") is not what " + path.filename().u8string() + " describes (" +
                   spec.artifact.file + ", sha256 " + beginning(spec.artifact.sha256, 12) +
                   "). The file is damaged or the pair was mixed up: copy both again, or rerun "
                   "destseg-export --category " + spec.category);
}

}  // namespace destseg_core
