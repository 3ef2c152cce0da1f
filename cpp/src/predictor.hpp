// The C++ twin of destseg_deploy/predictor.py: frames in, judged answers out. Shared by threads.
#pragma once

#include <memory>
#include <string>

#include "backend.hpp"
#include "destseg.h"
#include "frames.hpp"
#include "pool.hpp"

namespace destseg_core {

class Predictor {
 public:
  // Reads and checks spec and artifact, then opens it. Throws Error.
  Predictor(Request request, int parallel);

  const Spec &spec() const { return spec_; }
  // See destseg_infer; arguments are checked here.
  void infer(const destseg_frame *frames, int count, destseg_result *results, float *maps,
             std::size_t maps_floats);
  destseg_result judge(float score) const;
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

  void check(const destseg_frame *frames, int count, const destseg_result *results,
             const float *maps, std::size_t maps_floats) const;
  void infer_group(Worker &worker, const destseg_frame *frames, int count, destseg_result *results,
                   float *maps);

  const Request request_;
  const Spec spec_;
  WeightCache cache_;
  const std::unique_ptr<Backend> backend_;
  Pool<Worker> workers_;  // last: it goes before what its lanes use
};

}  // namespace destseg_core
