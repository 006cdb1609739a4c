// Group normalisation: sums over runs in double, put together in the runs' order, then the result run by run.
#include <cmath>
#include <new>

#include "../shade_fast.h"
#include "isa.h"
#include "layers.h"
#include "runs.h"

namespace shade_fast::cpu {
namespace {

// Enough pixels that a run's sums of channels are few beside its values.
constexpr std::int64_t kLeastPixels = 128;

Runs runs_of(const Extent& extent) {
  const Runs runs{extent};
  return runs.run_pixels >= kLeastPixels ? runs : Runs{extent, kLeastPixels};
}

std::int64_t whole_words(std::int64_t channels) { return (channels + 15) / 16 * 16; }

// The scratch memory: for every run two sums of each channel, which then become two sums of each group; and for
// every image the channels' factors.
struct Scratch {
  Runs runs;
  std::int64_t width;
  double* sums;
  float* factors;

  static constexpr std::int64_t kFactors = 5;

  Scratch(const Extent& extent, float* memory)
      : runs(runs_of(extent)), width(whole_words(extent.channels)), sums(doubles_in(memory)),
        factors(memory + floats_for_doubles(runs.count() * 2 * width)) {}

  double* of_run(std::int64_t index) const { return sums + index * 2 * width; }
  float* of_image(std::int64_t image, std::int64_t factor) const {
    return factors + (image * kFactors + factor) * width;
  }

  Normalization of_image(std::int64_t image, const float* gamma, const float* beta) const {
    return {of_image(image, 0), of_image(image, 1), gamma, beta, of_image(image, 2), of_image(image, 3),
            of_image(image, 4)};
  }
};

struct Sums {
  double first = 0.0, second = 0.0;
};

struct Grouping {
  std::int64_t groups;
  std::int64_t size;  // channels in a group

  // A run's sums of channels become those of its groups, in their place.
  void fold(double* sums, std::int64_t width, const float* gamma) const {
    for (std::int64_t group = 0; group < groups; ++group) {
      Sums total;
      for (std::int64_t c = group * size; c < (group + 1) * size; ++c) {
        const double weight = gamma == nullptr ? 1.0 : static_cast<double>(gamma[c]);
        total.first += weight * sums[c];
        total.second += weight * sums[width + c];
      }
      // Group g's sums are read from g * size on, and never before they are written.
      sums[group] = total.first;
      sums[width + group] = total.second;
    }
  }

  Sums total(const Scratch& scratch, std::int64_t image, std::int64_t group) const {
    Sums total;
    for (std::int64_t run = 0; run < scratch.runs.per_image; ++run) {
      const double* const sums = scratch.of_run(image * scratch.runs.per_image + run);
      total.first += sums[group];
      total.second += sums[scratch.width + group];
    }
    return total;
  }
};

bool is_sound(const Extent& extent, std::int64_t groups, int threads) {
  return is_sound(extent) && groups >= 1 && extent.channels % groups == 0 && threads >= 1;
}

bool is_known(Activation activation) {
  return activation == Activation::none || activation == Activation::relu || activation == Activation::silu;
}

}  // namespace

std::int64_t group_norm_scratch(Extent extent, std::int64_t groups, int threads) {
  if (!is_sound(extent, groups, threads)) return 0;
  const std::int64_t width = whole_words(extent.channels);
  return floats_for_doubles(runs_of(extent).count() * 2 * width) + extent.images * Scratch::kFactors * width;
}

Status group_norm(const float* input, const float* gamma, const float* beta, float* statistics, float* result,
                  Extent extent, std::int64_t groups, float epsilon, Activation activation, float* memory,
                  int threads) try {
  if (!is_sound(extent, groups, threads) || !is_known(activation) || !(epsilon >= 0.0f)) return Status::bad_argument;
  const GroupNormKernels& kernels = SHADE_FAST_SELECTED(group_norm);
  const Scratch scratch(extent, memory);
  const Grouping grouping{groups, extent.channels / groups};
  const std::int64_t channels = extent.channels;

  for_runs(scratch.runs, threads, [&](const Run& run) {
    double* const sums = scratch.of_run(run.index);
    kernels.sum_moments(input + run.pixel * channels, run.pixels, channels, scratch.width, sums);
    grouping.fold(sums, scratch.width, nullptr);
  });

  const double count = static_cast<double>(extent.pixels * grouping.size);
  for (std::int64_t image = 0; image < extent.images; ++image) {
    for (std::int64_t group = 0; group < groups; ++group) {
      const Sums sums = grouping.total(scratch, image, group);
      const double mean = sums.first / count;
      const double variance = sums.second / count - mean * mean;
      const double inverse = 1.0 / std::sqrt((variance < 0.0 ? 0.0 : variance) + static_cast<double>(epsilon));
      float* const kept = statistics + (image * groups + group) * 2;
      kept[0] = static_cast<float>(mean);
      kept[1] = static_cast<float>(inverse);
      for (std::int64_t c = group * grouping.size; c < (group + 1) * grouping.size; ++c) {
        scratch.of_image(image, 0)[c] = kept[0];
        scratch.of_image(image, 2)[c] = gamma[c] * kept[1];
      }
    }
  }

  const bool stream = streams(result, extent, {});
  for_runs(scratch.runs, threads, [&](const Run& run) {
    const std::int64_t first = run.pixel * channels;
    kernels.normalize(input + first, result + first, run.pixels, channels, scratch.of_image(run.image, gamma, beta),
                      activation, stream);
  });
  return Status::ok;
} catch (const std::bad_alloc&) {
  return Status::out_of_memory;
}

Status group_norm_gradient(const float* gradient, const float* input, const float* gamma, const float* beta,
                           const float* statistics, float* result, Extent extent, std::int64_t groups,
                           Activation activation, const Epilogue& epilogue, float* memory, int threads) try {
  if (!is_sound(extent, groups, threads) || !is_known(activation)) return Status::bad_argument;
  const GroupNormKernels& kernels = SHADE_FAST_SELECTED(group_norm);
  const Scratch scratch(extent, memory);
  const Grouping grouping{groups, extent.channels / groups};
  const std::int64_t channels = extent.channels;

  for (std::int64_t image = 0; image < extent.images; ++image) {
    for (std::int64_t c = 0; c < channels; ++c) {
      const float* const kept = statistics + (image * groups + c / grouping.size) * 2;
      scratch.of_image(image, 0)[c] = kept[0];
      scratch.of_image(image, 1)[c] = kept[1];
      scratch.of_image(image, 2)[c] = gamma[c] * kept[1];
    }
  }

  for_runs(scratch.runs, threads, [&](const Run& run) {
    const std::int64_t first = run.pixel * channels;
    double* const sums = scratch.of_run(run.index);
    kernels.sum_gradient(gradient + first, input + first, run.pixels, channels,
                         scratch.of_image(run.image, gamma, beta), activation, scratch.width, sums);
    grouping.fold(sums, scratch.width, gamma);
  });

  const double count = static_cast<double>(extent.pixels * grouping.size);
  for (std::int64_t image = 0; image < extent.images; ++image) {
    for (std::int64_t group = 0; group < groups; ++group) {
      const Sums sums = grouping.total(scratch, image, group);
      const double factor = static_cast<double>(statistics[(image * groups + group) * 2 + 1]) / count;
      for (std::int64_t c = group * grouping.size; c < (group + 1) * grouping.size; ++c) {
        scratch.of_image(image, 3)[c] = static_cast<float>(sums.first * factor);
        scratch.of_image(image, 4)[c] = static_cast<float>(sums.second * factor);
      }
    }
  }

  const bool stream = streams(result, extent, epilogue);
  for_runs(scratch.runs, threads, [&](const Run& run) {
    const std::int64_t first = run.pixel * channels;
    kernels.gradient(gradient + first, input + first, result + first, run.pixels, channels,
                     scratch.of_image(run.image, gamma, beta), activation,
                     from_pixel(epilogue, run.pixel, channels), stream);
  });
  return Status::ok;
} catch (const std::bad_alloc&) {
  return Status::out_of_memory;
}

}  // namespace shade_fast::cpu
