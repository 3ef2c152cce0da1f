#include "tuning.hpp"

#include <initializer_list>
#include <system_error>
#include <utility>

#include "cores.hpp"
#include "error.hpp"
#include "spec.hpp"
#include "text.hpp"

namespace destseg_core {
namespace {

constexpr int kTuningFormat = 1, kMostThreads = 1024, kMostStreams = 1024, kMostCores = 65536;

// A tuning's file, entry by entry; every fault is named with its place.
class File {
 public:
  explicit File(std::filesystem::path artifact) : artifact_(std::move(artifact)) {
    path_ = artifact_;
    path_.replace_extension(".tuning.json");
    std::error_code code;
    if (!std::filesystem::exists(path_, code))
      throw refuse("no such file, so " + artifact_.filename().u8string() + " is not tuned");
    try {
      json_ = parse_json(decode_utf8(read_json_text(path_)));
    } catch (const JsonError &error) {
      throw refuse(std::string("not JSON (") + error.what() + ")");
    } catch (const Error &error) {  // what the reader of specs advises is for specs
      const std::string found = error.what();
      throw backend_error(found.substr(0, found.rfind(". ")) + advice());
    }
  }

  Error refuse(const std::string &what) const {
    return backend_error(path_.u8string() + ": " + what + advice());
  }
  std::string text(std::initializer_list<const char *> names) const {
    return find(names, Json::Kind::string, "text").text;
  }
  bool boolean(std::initializer_list<const char *> names) const {
    return find(names, Json::Kind::boolean, "true or false").boolean;
  }
  int count(std::initializer_list<const char *> names, int least, int most) const {
    const Json &found = find(names, Json::Kind::integer, "a whole number");
    if (found.number < least || found.number > most)
      throw refuse(name_of(names) + " is " + show(found) + ", expected " +
                   std::to_string(least) + " to " +
                   std::to_string(most));
    return static_cast<int>(found.number);
  }
  std::string choice(std::initializer_list<const char *> names,
                     std::initializer_list<const char *> choices) const {
    const Json &found = find(names, Json::Kind::string, "text");
    std::string listed;
    for (const char *one : choices) {
      if (found.text == one) return found.text;
      listed += (listed.empty() ? "" : " or ") + std::string(one);
    }
    throw refuse(name_of(names) + " is " + show(found) + ", expected " + listed);
  }

 private:
  std::string advice() const {
    return ". Run destseg tune " + artifact_.u8string() + " --images FOLDER on this machine.";
  }
  static std::string name_of(std::initializer_list<const char *> names) {
    std::string joined;
    for (const char *name : names) joined += (joined.empty() ? "" : ": ") + std::string(name);
    return joined;
  }
  const Json &find(std::initializer_list<const char *> names, Json::Kind kind,
                   const char *expected) const {
    const Json *found = &json_;
    for (const char *name : names)
      if (found != nullptr) found = found->kind == Json::Kind::object ? found->find(name) : nullptr;
    if (found == nullptr) throw refuse("entry '" + name_of(names) + "' is missing");
    if (found->kind != kind)
      throw refuse(name_of(names) + " is " + show(*found) + ", expected " + expected);
    return *found;
  }

  std::filesystem::path artifact_, path_;
  Json json_;
};

std::string machine_of(const std::string &cpu, int cores) {
  return cpu + " with " + std::to_string(cores) + " cores";
}

}  // namespace

void follow_tuning(Request &request) {
  const File file(request.path);
  file.count({"format"}, kTuningFormat, kTuningFormat);
  const std::string backend = file.choice({"choice", "backend"}, {"onnxruntime", "openvino"});
  const bool openvino = backend == "openvino";
  request.backend = backend;
  request.precision = openvino ? file.choice({"choice", "precision"}, {"fp32", "bf16"})
                               : file.choice({"choice", "precision"}, {"fp32"});
  request.threads = file.count({"choice", "threads"}, 0, kMostThreads);
  request.spinning = file.boolean({"choice", "spinning"});
  request.streams = file.count({"choice", "streams"}, 0, openvino ? kMostStreams : 0);
  if (openvino && !request.spinning) throw file.refuse("spinning is false, expected true with openvino");
  const std::string made = machine_of(file.text({"machine", "cpu"}),
                                      file.count({"machine", "cores"}, 1, kMostCores));
  const std::string here = machine_of(cpu_name(), static_cast<int>(allowed_cores().size()));
  if (made != here) throw file.refuse("made on " + made + "; this is " + here);
}

void check_tuning(const Request &request, const std::string &sha256, const std::string &version) {
  const File file(request.path);
  if (file.text({"artifact", "sha256"}) != sha256)
    throw file.refuse(request.path.filename().u8string() + " was changed after it was tuned");
  const std::string made = file.text({"machine", "version"});
  if (made != version)
    throw file.refuse("made with version " + made + " of " + request.backend + "; this is " +
                      version);
}

}  // namespace destseg_core
