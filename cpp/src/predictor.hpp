// The C++ twin of destseg_deploy/predictor.py: frames in, judged answers out. Shared by threads.
#pragma once

#include <filesystem>
#include <memory>
#include <mutex>
#include <string>

#include "backend.hpp"
#include "defects.hpp"
#include "destseg.h"
#include "frames.hpp"
#include "pool.hpp"

namespace destseg_core {

// Whether a value is one that scores and maps may have, [0, 1] but for rounding. NaN > threshold is
// false, so that a defect with such a score would be judged as a good part.
bool is_answer(float value);

// Frames at the input's size, RGB, one after the other, and how long it took to bring them there.
struct Prepared {
  std::vector<std::uint8_t> pixels;
  int count = 0;
  double milliseconds = 0;
};

class Predictor {
 public:
  // Reads and checks spec and artifact, then opens it. Throws Error.
  Predictor(Request request, int parallel);

  const Spec &spec() const { return spec_; }
  int parallel() const { return parallel_; }
  // How another artifact is opened in the place of this one. Throws Error for one of another kind.
  Request request_for(std::filesystem::path path) const;
  // Run once in every lane, so that the first frames are as fast as later ones.
  void warm_up();
  // See destseg_get_times.
  destseg_times times() const;
  // See destseg_infer. The frames are as this library knows them; what they hold is checked here.
  void infer(const destseg_frame *frames, int count, destseg_result *results, float *maps,
             std::size_t maps_floats);
  // The two halves of it, for frames whose pixels do not stay. Any thread may do either.
  Prepared prepare(const destseg_frame *frames, int count);
  void infer(const Prepared &prepared, destseg_result *results, float *maps,
             std::size_t maps_floats);
  destseg_result judge(float score) const;
  // See destseg_defects.
  Defects defects(const float *map, int height, int width, double threshold) const;
  // See destseg_map_at_frame.
  void map_at_frame(const float *map, int height, int width, float *target,
                    std::size_t target_floats) const;
  // See destseg_get_text. Throws Error (argument) for a name that is no text.
  std::string text(const std::string &name) const;

 private:
  // A lane and what brings frames to it.
  struct Worker {
    Worker(std::unique_ptr<Lane> opened, const Spec &spec, WeightCache &cache)
        : lane(std::move(opened)), fitter(spec, cache) {}
    std::unique_ptr<Lane> lane;
    FrameFitter fitter;
  };

  void check(const destseg_frame *frames, int count, const float *maps,
             std::size_t maps_floats) const;
  void check_answers(const char *name, const float *values, std::size_t count) const;
  void infer_all(const destseg_frame *frames, int count, destseg_result *results, float *maps,
                 destseg_times times);
  void infer_group(Worker &worker, const destseg_frame *frames, int count, destseg_result *results,
                   float *maps, destseg_times &times);

  const Request request_;
  const int parallel_;
  const Spec spec_;
  WeightCache cache_;
  const std::unique_ptr<Backend> backend_;
  std::mutex warm_up_mutex_;  // two that each hold a part of the lanes would wait for ever
  mutable std::mutex times_mutex_;
  destseg_times times_{};  // of the last call that ended
  Pool<Worker> workers_;  // last: destroyed before what its lanes use
};

}  // namespace destseg_core
