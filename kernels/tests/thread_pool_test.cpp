#include "cpu/thread_pool.h"

#include <stdexcept>
#include <utility>

#include "tests/check.h"
#include "tests/job.h"

using niwaki::ThreadPool;
using niwaki::Worker;
using niwaki::test::run_job;

TEST(every_item_runs_once) {
  for (int threads = 1; threads <= 4; ++threads) {
    ThreadPool pool(threads);
    CHECK(pool.threads() == threads);
    for (const int64_t items : {0, 1, 2, 7, 64, 1000}) {
      std::vector<std::atomic<int>> seen(static_cast<size_t>(items));
      std::atomic<bool> in_range{true};
      run_job(pool, [&] {
        pool.parallel([&](Worker& worker) {
          worker.each(items, 3, [&](int64_t begin, int64_t end) {
            if (end - begin > 3 || worker.index() >= worker.count()) in_range = false;
            for (int64_t i = begin; i < end; ++i) ++seen[static_cast<size_t>(i)];
          });
        });
      });
      CHECK(in_range);
      for (const auto& count : seen) CHECK(count == 1);
    }
  }
}

TEST(runs_get_shorter_towards_the_end_of_a_share) {
  for (int threads = 1; threads <= 4; ++threads) {
    ThreadPool pool(threads);
    for (const int64_t items : {0, 1, 2, 7, 64, 1000}) {
      for (const auto& [least, most] :
           {std::pair<int64_t, int64_t>{1, 16}, {2, 16}, {4, 12}, {3, 3}, {5, 7}}) {
        std::vector<std::atomic<int>> seen(static_cast<size_t>(items));
        std::atomic<bool> as_said{true};
        std::atomic<int64_t> shortest{most};
        run_job(pool, [&] {
          pool.parallel([&](Worker& worker) {
            worker.each(items, {least, most}, [&](int64_t begin, int64_t end) {
              if (end - begin > most || begin % least != 0) as_said = false;
              if (end < items && end - begin < least) as_said = false;
              for (int64_t now = shortest;
                   end - begin < now && !shortest.compare_exchange_weak(now, end - begin);) {
              }
              for (int64_t i = begin; i < end; ++i) ++seen[static_cast<size_t>(i)];
            });
          });
        });
        CHECK(as_said);
        if (items >= 64) CHECK(shortest <= least);
        for (const auto& count : seen) CHECK(count == 1);
      }
    }
  }
}

TEST(a_run_is_half_of_what_is_left) {
  ThreadPool pool(1);
  std::vector<int64_t> runs;
  run_job(pool, [&] {
    pool.parallel([&](Worker& worker) {
      worker.each(47, {2, 16}, [&](int64_t begin, int64_t end) { runs.push_back(end - begin); });
    });
  });
  CHECK((runs == std::vector<int64_t>{16, 16, 8, 4, 2, 1}));
}

TEST(a_thread_begins_with_its_own_share_and_helps_with_the_others) {
  ThreadPool pool(3);
  std::vector<std::vector<int64_t>> taken(3);
  run_job(pool, [&] {
    std::atomic<int> begun{0}, done{0};
    pool.parallel([&](Worker& worker) {
      auto& mine = taken[static_cast<size_t>(worker.index())];
      worker.each(60, 1, [&](int64_t begin, int64_t) {
        mine.push_back(begin);
        if (mine.size() > 1) return;
        for (++begun; begun < 3;) std::this_thread::yield();
        // Thread 1 stays at its first item until the others have done everything else.
        while (worker.index() == 1 && done < 2) std::this_thread::yield();
      });
      ++done;
    });
  });
  for (size_t thread = 0; thread < 3; ++thread)
    CHECK(taken[thread].front() == static_cast<int64_t>(thread) * 20);
  CHECK(taken[1].size() == 1);
  CHECK(taken[0].size() + taken[2].size() == 59);
  // The share of a thread that stays away is taken from its beginning, as its own is.
  for (const size_t thread : {0, 2}) {
    int64_t last[3] = {-1, -1, -1};
    for (const int64_t item : taken[thread]) CHECK(item > std::exchange(last[item / 20], item));
  }
}

TEST(several_calls_in_a_phase_are_shared_one_after_another) {
  ThreadPool pool(3);
  std::vector<std::atomic<int>> seen(300);
  run_job(pool, [&] {
    for (int phase = 0; phase < 1000; ++phase) {
      pool.parallel([&](Worker& worker) {
        for (int64_t call = 0; call < 3; ++call) {
          worker.each(100, 7, [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) ++seen[static_cast<size_t>(call * 100 + i)];
          });
        }
      });
    }
  });
  for (const auto& count : seen) CHECK(count == 1000);
}

TEST(a_hundred_thousand_phases) {
  for (int threads = 1; threads <= 4; ++threads) {
    ThreadPool pool(threads);
    const int phases = threads <= 2 ? 100'000 : 10'000;  // more threads than cores wait for each other
    int64_t total = 0;
    std::atomic<int64_t> sum{0};
    run_job(pool, [&] {
      for (int phase = 0; phase < phases; ++phase) {
        int64_t plain[8] = {};
        pool.parallel([&](Worker& worker) {
          worker.each(8, 1, [&](int64_t begin, int64_t) { plain[begin] = begin + phase; });
        });
        for (const int64_t value : plain) total += value;  // written by others, read without atomics
      }
    });
    int64_t expected = 0;
    for (int64_t phase = 0; phase < phases; ++phase) expected += 28 + 8 * phase;
    CHECK(total == expected);
  }
}

TEST(sleeping_threads_wake) {
  ThreadPool pool(3);
  for (int i = 0; i < 20; ++i) {
    std::atomic<int> count{0};
    run_job(pool, [&] {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      pool.parallel([&](Worker& worker) {
        worker.each(30, 1, [&](int64_t, int64_t) {
          std::this_thread::sleep_for(std::chrono::microseconds(20));
          ++count;
        });
      });
    });
    CHECK(count == 30);
  }
}

TEST(an_exception_of_any_thread_reaches_the_job) {
  ThreadPool pool(3);
  int caught = 0;
  run_job(pool, [&] {
    for (int i = 0; i < 1000; ++i) {
      try {
        pool.parallel([&](Worker& worker) {
          worker.each(16, 1, [&](int64_t begin, int64_t) {
            if (begin == i % 16) throw std::runtime_error("item");
          });
        });
      } catch (const std::runtime_error&) {
        ++caught;
      }
    }
    pool.parallel([](Worker&) {});  // and is forgotten after that
  });
  CHECK(caught == 1000);
}

TEST(the_end_runs_what_is_queued) {
  std::atomic<int> ran{0};
  {
    ThreadPool pool(2);
    for (int i = 0; i < 50; ++i) pool.submit([&] { ++ran; });
  }
  CHECK(ran == 50);
}

TEST_MAIN()
