// ModelSpec: the contract written as .json beside every artifact. The C++ twin of
// destseg_deploy/spec.py, with its strictness and its words.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include "json.hpp"

namespace destseg_core {

constexpr int kFormat = 1;
constexpr std::size_t kMaxJsonBytes = std::size_t{4} << 20;
// Limits that the Python reader does not have: here sizes become buffers.
constexpr std::int64_t kMaxSide = 65536;
constexpr std::int64_t kMaxBatch = 65536;
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

struct Spec {
  std::string kind, category, precision;
  Size input, network, map;
  Batch batch;
  std::string input_name, map_name, score_name;
  int top_k = 0;
  FileRecord artifact;
  std::optional<Threshold> threshold;
  Json json;          // all of it
  std::string text;   // the file

  // Frames of any size are taken: the resize is done here and not in the graph.
  bool any_size() const { return input == network; }
};

// Read a spec. Throws Error (spec); `where` is what to call it, usually the file.
Spec spec_from_json(const std::string &text, const std::string &where);
// Read the spec beside an artifact: the same name, suffix .json.
Spec read_spec(const std::filesystem::path &artifact);
// Make sure that a spec describes that very file. Throws Error (spec).
void check_artifact(const Spec &spec, const std::filesystem::path &artifact);

}  // namespace destseg_core
