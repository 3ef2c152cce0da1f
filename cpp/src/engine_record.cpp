#include "engine_record.hpp"

#include <algorithm>
#include <vector>

#include "error.hpp"

namespace destseg_core {
namespace {

std::string title(const std::string &builder) {
  if (builder == "tensorrt") return "TensorRT";
  return builder == "tensorrt-rtx" ? "TensorRT-RTX" : builder;
}

std::string joined(const std::vector<std::string> &texts) {
  std::string joined;
  for (const std::string &text : texts) joined += (joined.empty() ? "" : ", ") + text;
  return joined;
}

}  // namespace

std::string rebuild_command(const Spec &spec) {
  std::string command = "destseg-export --category " + spec.category + " --format engine";
  if (spec.precision != "fp16")  // what the command makes unless told otherwise
    command += " --precision " + spec.precision;
  if (spec.engine && spec.engine->builder == "tensorrt-rtx") command += " --builder tensorrt-rtx";
  return command;
}

void check_engine(const Spec &spec, const Machine &machine) {
  if (spec.kind != "engine" || !spec.engine)
    throw spec_error(spec.artifact.file + ": its spec says " + spec.kind +
                     ", expected engine. Copy the .json that was written with the engine.");
  const EngineRecord &record = *spec.engine;
  const auto &targets = record.targets;
  const bool target = std::find(targets.begin(), targets.end(), machine.sm) != targets.end();
  const bool same_builder = record.builder == machine.builder && record.version == machine.version;
  const bool same_gpu = !record.gpu || *record.gpu == machine.gpu;
  if (same_builder && target && same_gpu) return;
  // GPUs of one compute capability are told apart by their names.
  const bool named = target && record.gpu && !record.gpu->empty();
  throw spec_error(spec.artifact.file + ": built for " + joined(targets) +
                   (named ? " (" + *record.gpu + ")" : "") + " by " + title(record.builder) + " " +
                   record.version + ", this machine has " + machine.sm +
                   (named ? " (" + machine.gpu + ")" : "") + " and " + title(machine.builder) +
                   " " + machine.version +
                   ". Engines are not portable; rebuild it here: " + rebuild_command(spec));
}

}  // namespace destseg_core
