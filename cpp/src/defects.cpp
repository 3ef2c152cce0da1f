// Compiled without contraction to fused multiply-add: the resized map must round as NumPy's does.
#include "defects.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <utility>

namespace destseg_core {
namespace {

// The two pixels of a map that a pixel of the frame lies between, and the share of the second.
struct Tap {
  std::size_t low, high;
  double share;
};

std::vector<Tap> taps(int source, int target) {
  std::vector<Tap> all;
  const double scale = static_cast<double>(source) / target;
  for (int i = 0; i < target; ++i) {
    const double at = std::clamp((i + 0.5) * scale - 0.5, 0.0, source - 1.0);
    const double low = std::floor(at);
    all.push_back({static_cast<std::size_t>(low),
                   static_cast<std::size_t>(std::min(low + 1, source - 1.0)), at - low});
  }
  return all;
}

double between(double low, double high, double share) { return low * (1 - share) + high * share; }

// Rows of a map at a frame's size, one after the other.
class Enlarger {
 public:
  Enlarger(const float *map, Size map_size, Size frame)
      : map_(map),
        width_(static_cast<std::size_t>(map_size.width)),
        rows_(taps(map_size.height, frame.height)),
        columns_(taps(map_size.width, frame.width)),
        row_(width_) {}

  // Rows that cannot be above the threshold are left as they are.
  void write(float *target, float threshold) {
    for (const Tap &tap : rows_) {
      const float *low = map_ + tap.low * width_, *high = map_ + tap.high * width_;
      const bool flat = std::max(*std::max_element(low, low + width_),
                                 *std::max_element(high, high + width_)) <= threshold;
      if (!flat) write_row(low, high, tap.share, target);
      target += columns_.size();
    }
  }

 private:
  void write_row(const float *low, const float *high, double share, float *target) {
    for (std::size_t x = 0; x < width_; ++x)
      row_[x] = between(static_cast<double>(low[x]), static_cast<double>(high[x]), share);
    for (std::size_t x = 0; x < columns_.size(); ++x)
      target[x] = static_cast<float>(
          between(row_[columns_[x].low], row_[columns_[x].high], columns_[x].share));
  }

  const float *const map_;
  const std::size_t width_;
  const std::vector<Tap> rows_, columns_;
  std::vector<double> row_;
};

// The eight directions, counterclockwise from the right.
constexpr int kX[] = {1, 1, 0, -1, -1, -1, 0, 1};
constexpr int kY[] = {0, -1, -1, -1, 0, 1, 1, 1};

class Finder {
 public:
  Finder(const std::vector<float> &values, Size size, float threshold)
      : values_(values), size_(size), threshold_(threshold), seen_(values_.size()) {}

  Defects run() {
    std::vector<std::size_t> starts;
    for (std::size_t at = 0; at < values_.size(); ++at)
      if (is_above(at) && !seen_[at]) {
        found_.regions.push_back(region(at));
        starts.push_back(at);
      }
    return sorted(starts);
  }

 private:
  bool is_above(std::size_t at) const { return values_[at] > threshold_; }
  int x_of(std::size_t at) const {
    return static_cast<int>(at % static_cast<std::size_t>(size_.width));
  }
  int y_of(std::size_t at) const {
    return static_cast<int>(at / static_cast<std::size_t>(size_.width));
  }
  bool is_inside(int x, int y) const {
    return x >= 0 && y >= 0 && x < size_.width && y < size_.height;
  }
  std::size_t index(int x, int y) const {
    return static_cast<std::size_t>(y) * static_cast<std::size_t>(size_.width) +
           static_cast<std::size_t>(x);
  }

  // What is connected with a pixel; marks it as seen.
  destseg_defect region(std::size_t start) {
    int left = x_of(start), right = left, top = y_of(start), bottom = top;
    std::size_t peak = start;
    std::int64_t area = 0, sum_x = 0, sum_y = 0;
    std::vector<std::size_t> waiting{start};
    seen_[start] = 1;
    while (!waiting.empty()) {
      const std::size_t at = waiting.back();
      waiting.pop_back();
      const int x = x_of(at), y = y_of(at);
      left = std::min(left, x), right = std::max(right, x), bottom = std::max(bottom, y);
      ++area, sum_x += x, sum_y += y;
      if (values_[at] > values_[peak] || (values_[at] == values_[peak] && at < peak)) peak = at;
      for (int d = 0; d < 8; ++d) {
        if (!is_inside(x + kX[d], y + kY[d])) continue;
        const std::size_t next = index(x + kX[d], y + kY[d]);
        if (!is_above(next) || seen_[next]) continue;
        seen_[next] = 1;
        waiting.push_back(next);
      }
    }
    destseg_defect defect{};
    defect.x = left, defect.y = top;
    defect.width = right - left + 1, defect.height = bottom - top + 1;
    defect.peak = values_[peak], defect.peak_x = x_of(peak), defect.peak_y = y_of(peak);
    defect.area = area;
    defect.centroid_x = static_cast<double>(sum_x) / static_cast<double>(area);
    defect.centroid_y = static_cast<double>(sum_y) / static_cast<double>(area);
    return defect;
  }

  bool is_above(int x, int y) const { return is_inside(x, y) && is_above(index(x, y)); }

  // Follow the outer border of a region from its first pixel, as Suzuki and Abe (1985) do: from each
  // pixel, the next is the first one counterclockwise after the one before.
  void trace(int start_x, int start_y) {
    int direction = 3;  // what lies to the left of the first pixel, or above, is outside
    while (direction >= -4 && !is_above(start_x + kX[direction & 7], start_y + kY[direction & 7]))
      --direction;
    if (direction < -4) return found_.points.push_back({start_x, start_y});
    const int last_x = start_x + kX[direction & 7], last_y = start_y + kY[direction & 7];
    int x = start_x, y = start_y;
    direction &= 7;
    for (;;) {
      do direction = (direction + 1) & 7;
      while (!is_above(x + kX[direction], y + kY[direction]));
      found_.points.push_back({x, y});
      const int next_x = x + kX[direction], next_y = y + kY[direction];
      if (next_x == start_x && next_y == start_y && x == last_x && y == last_y) return;
      x = next_x, y = next_y;
      direction = (direction + 4) & 7;
    }
  }

  Defects sorted(const std::vector<std::size_t> &starts) {
    std::vector<std::size_t> order(starts.size());
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
    std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
      return found_.regions[a].peak > found_.regions[b].peak;
    });
    std::vector<destseg_defect> regions;
    for (const std::size_t i : order) {
      destseg_defect defect = found_.regions[i];
      const std::size_t before = found_.points.size();
      trace(x_of(starts[i]), y_of(starts[i]));
      defect.first_point = static_cast<std::int32_t>(before);
      defect.points = static_cast<std::int32_t>(found_.points.size() - before);
      regions.push_back(defect);
    }
    found_.regions = std::move(regions);
    return std::move(found_);
  }

  const std::vector<float> &values_;
  const Size size_;
  const float threshold_;
  std::vector<std::uint8_t> seen_;
  Defects found_;
};

}  // namespace

Defects find_defects(const float *map, Size map_size, Size frame, float threshold) {
  const float *end = map + map_size.pixels();
  if (std::all_of(map, end, [&](float value) { return value <= threshold; })) return {};
  std::vector<float> values(frame.pixels());
  Enlarger(map, map_size, frame).write(values.data(), threshold);
  return Finder(values, frame, threshold).run();
}

void enlarge(const float *map, Size map_size, Size frame, float *target) {
  Enlarger(map, map_size, frame).write(target, -std::numeric_limits<float>::infinity());
}

}  // namespace destseg_core
