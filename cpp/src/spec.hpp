// The contract written as .json beside every artifact, formats 1 and 2. The C++ twin of
// destseg_deploy/spec, and as strict; of format 1 it checks only what it uses. What a newer
// exporter adds under "extra" is ignored.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "json.hpp"

namespace destseg_core {

constexpr int kFormat = 2;
constexpr std::size_t kMaxJsonBytes = std::size_t{4} << 20;
// Sizes become buffers, so that a file must not ask for more than these; as in Python.
constexpr std::int64_t kMaxSide = 65536;
constexpr std::int64_t kMaxNetworkSide = 4096;
constexpr std::int64_t kNetworkStep = 32;
constexpr std::int64_t kMaxBatch = 65536;
constexpr std::int64_t kMaxConvolutions = 65536;
constexpr std::int64_t kMaxImages = 2147483647;
constexpr double kMaxScale = 4;
constexpr std::int64_t kMaxTiles = 4096;
constexpr std::int64_t kMaxCallBytes = std::int64_t{1} << 33;

struct Size {
  int height = 0;
  int width = 0;
  bool operator==(const Size &other) const {
    return height == other.height && width == other.width;
  }
  std::size_t pixels() const {
    return static_cast<std::size_t>(height) * static_cast<std::size_t>(width);
  }
};

struct Batch {
  int min = 1, opt = 1, max = 1;
};

struct Threshold {
  double score = 0, pixel = 0;
  std::string rule;
  std::int64_t images = 0;

  // A raw score in [0, 1] with the threshold at 0.5; see Threshold.normalized in Python.
  double normalized(double score) const;
};

struct FileRecord {
  std::string file, sha256;
};

// What decides where an engine runs; see EngineRecord in Python.
struct EngineRecord {
  std::string builder, version;
  std::optional<std::string> gpu;  // none for an engine that was built ahead of time
  std::vector<std::string> targets;
};

struct Spec {
  std::string kind, category, precision;
  Size input, network, map;
  Size working;  // of the map that the score is taken from: blended from tiles, or the network's
  Batch batch;
  std::string input_name, map_name, score_name;
  int top_k = 0;
  FileRecord artifact;
  std::optional<Threshold> threshold;
  std::optional<EngineRecord> engine;  // only an engine has it
  Json json;          // all of it
  std::string text;   // the file

  // Whether frames of any size are taken: then the resize is done here and not in the graph.
  bool any_size() const {
    return input == network && !is_given("tiling") && !is_given("region");
  }

 private:
  bool is_given(const char *name) const {
    const Json *entry = json.find(name);
    return entry != nullptr && entry->kind != Json::Kind::null;
  }
};

// The text of a JSON file, in UTF-8. Throws Error (spec).
std::string read_json_text(const std::filesystem::path &path);

// Read a spec. Throws Error (spec); `where` is what to call it, usually the file.
Spec spec_from_json(const std::string &text, const std::string &where);
// Read the spec beside an artifact: the same name, suffix .json (.engine.json for an engine).
Spec read_spec(const std::filesystem::path &artifact);
// Make sure that a spec describes that very file and nothing beside it. Throws Error (spec).
void check_artifact(const Spec &spec, const std::filesystem::path &artifact);

}  // namespace destseg_core
