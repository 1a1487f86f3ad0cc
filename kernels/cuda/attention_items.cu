#include <algorithm>
#include <utility>

#include "cuda/attention.h"
#include "cuda/attention_tiles.h"

namespace niwaki::cuda {
namespace {

constexpr int32_t ceil_div(int32_t a, int32_t b) {
  return (a + b - 1) / b;
}

/// About how long an item takes, in steps of one with few units.
int64_t cost(const AttentionItem& item) {
  return int64_t{ceil_div(item.end - item.begin, kStepTokens)} * (item.units > kNarrowUnits ? 4 : 1);
}

/// Whether no sequence of the step reads a block that another one writes.
bool sequences_apart(const Step& step, int32_t block_size) {
  if (step.sequences.size() == 1) return true;
  std::vector<std::pair<int32_t, size_t>> written;  // blocks and who writes them
  const auto blocks = [&](const StepSequence& s) { return ceil_div(s.context_length, block_size); };
  for (size_t i = 0; i < step.sequences.size(); ++i) {
    const StepSequence& s = step.sequences[i];
    for (int32_t b = (s.context_length - s.row_count) / block_size; b < blocks(s); ++b)
      written.emplace_back(s.block_table[static_cast<size_t>(b)], i);
  }
  std::sort(written.begin(), written.end());
  constexpr size_t kBits = 1 << 14;  // of the blocks, modulo: most that are read are not written
  std::vector<bool> maybe(kBits);
  for (const auto& [block, writer] : written) maybe[static_cast<size_t>(block) % kBits] = true;
  for (size_t i = 0; i < step.sequences.size(); ++i) {
    const StepSequence& s = step.sequences[i];
    for (int32_t b = 0; b < blocks(s); ++b) {
      const int32_t block = s.block_table[static_cast<size_t>(b)];
      if (!maybe[static_cast<size_t>(block) % kBits]) continue;
      auto found = std::lower_bound(written.begin(), written.end(), std::pair{block, size_t{0}});
      for (; found != written.end() && found->first == block; ++found) {
        if (found->second != i) return false;
      }
    }
  }
  return true;
}

/// The tiles of a step, of one KV head: items that are not split.
std::vector<AttentionItem> list_tiles(const Step& step, const AttentionShape& shape) {
  const QkvLayout& layout = shape.layout;
  const int32_t group = layout.heads / layout.kv_heads, most = most_units(layout.head_dim, shape.wide);
  const bool apart = sequences_apart(step, shape.block_size);
  std::vector<AttentionItem> tiles;
  int32_t first_row = 0, table = 0;
  for (const StepSequence& sequence : step.sequences) {
    const int32_t first_position = sequence.context_length - sequence.row_count;
    for (int32_t unit = 0; unit < sequence.row_count * group;) {
      AttentionItem tile{};
      const int32_t row = unit / group;
      tile.first_row = first_row + row;
      tile.first_head = unit % group;
      tile.position = first_position + row;
      tile.table = table;
      tile.stored = apart ? first_position : 0;
      tile.span_tokens = span_tokens(tile.position);
      // Rows whose spans are of another length begin another tile.
      const int64_t next_length = int64_t{kMostSpans} * tile.span_tokens;
      const auto rows_end =
          static_cast<int32_t>(std::min<int64_t>(sequence.row_count, next_length - first_position));
      tile.units = std::min(most, rows_end * group - unit);
      tile.end = tile.position + (tile.first_head + tile.units - 1) / group + 1;
      tiles.push_back(tile);
      unit += tile.units;
    }
    first_row += sequence.row_count;
    table += static_cast<int32_t>(sequence.block_table.size());
  }
  return tiles;
}

}  // namespace

bool can_fuse_heads(const Step& step, const AttentionShape& shape) {
  const int32_t group = shape.layout.heads / shape.layout.kv_heads;
  return std::all_of(step.sequences.begin(), step.sequences.end(),
                     [&](const StepSequence& s) {
                       return s.row_count <= kFreshTokens && s.row_count * group <= kNarrowUnits &&
                              span_tokens(s.context_length - s.row_count) ==
                                  span_tokens(s.context_length - 1);
                     }) &&
         sequences_apart(step, shape.block_size);
}

int32_t attention_records(const QkvLayout& layout, int32_t rows, int64_t context) {
  constexpr int64_t kMost = 32 * 32 * kMostSpans;
  const int64_t spans = std::min<int64_t>(kMostSpans, (context + kChunkTokens - 1) / kChunkTokens);
  const int64_t wanted = std::min(kMost, spans * rows * layout.heads);
  return static_cast<int32_t>((wanted + 1) / 2 * 2);
}

int64_t most_attention_items(const AttentionShape& shape, int32_t rows) {
  const int32_t group = shape.layout.heads / shape.layout.kv_heads;
  // A tile has a whole row at least, or as many units as fit; a split one needs a record for each of its
  // items.
  const int64_t tiles = int64_t{rows} * ceil_div(group, kNarrowUnits);
  return tiles * shape.layout.kv_heads + shape.records;
}

void list_attention(const Step& step, const AttentionShape& shape, std::vector<AttentionItem>& items) {
  items.clear();
  const QkvLayout& layout = shape.layout;
  std::vector<AttentionItem> tiles = list_tiles(step, shape);
  std::stable_sort(tiles.begin(), tiles.end(),
                   [](const auto& a, const auto& b) { return cost(a) > cost(b); });
  int64_t total = 0;
  for (const AttentionItem& tile : tiles) total += cost(tile) * layout.kv_heads;
  // What runs longer than everything would if it were spread evenly is spread.
  const int64_t even = total / shape.processors;

  int32_t record = 0, counter = 0;
  for (const AttentionItem& tile : tiles) {
    const int32_t spans = ceil_div(tile.end, tile.span_tokens);
    const int32_t records = spans * tile.units;
    const int64_t joined = tile.units > kNarrowUnits ? 1 : 2;  // many units take longer to join
    const bool split =
        spans > 1 && joined * cost(tile) > 3 * even && record + records * layout.kv_heads <= shape.records;
    for (int32_t head = 0; head < layout.kv_heads; ++head) {
      AttentionItem item = tile;
      item.kv_head = head;
      if (!split) {
        items.push_back(item);
        continue;
      }
      item.split = spans;
      item.record = record;
      item.counter = counter++;
      record += records;
      for (int32_t begin = 0; begin < tile.end; begin += tile.span_tokens) {
        item.begin = begin;
        item.end = std::min(tile.end, begin + tile.span_tokens);
        items.push_back(item);
      }
    }
  }
  std::stable_sort(items.begin(), items.end(),
                   [](const auto& a, const auto& b) { return cost(a) > cost(b); });
  // The blocks of a processor begin `processors` items apart: every other row of items goes backwards, so
  // that each has about as much to do.
  const auto row = static_cast<size_t>(shape.processors);
  for (size_t begin = row; begin < items.size(); begin += 2 * row) {
    std::reverse(items.begin() + static_cast<std::ptrdiff_t>(begin),
                 items.begin() + static_cast<std::ptrdiff_t>(std::min(begin + row, items.size())));
  }
}

}  // namespace niwaki::cuda
