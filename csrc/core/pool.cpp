// How jobs are published, claimed and waited for.

#include "core/pool.h"

#include <chrono>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace octavo {

namespace {

using Clock = std::chrono::steady_clock;

// Between two operations of a step threads wait for less than this; longer means that a core was taken away, or that
// the step is over.
constexpr auto kSpin = std::chrono::microseconds(60);

inline void pause() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

// Looks at `ready` until it holds or kSpin has passed; says whether it held.
template <class F>
bool spin_until(F&& ready) {
    const auto end = Clock::now() + kSpin;
    do {
        for (int i = 0; i < 64; ++i) {
            if (ready()) return true;
            pause();
        }
    } while (Clock::now() < end);
    return ready();
}

constexpr std::uint32_t job_number(std::uint64_t claim) { return static_cast<std::uint32_t>(claim >> 32); }

}  // namespace

Pool::Pool(int num_threads) : num_groups_(num_threads < kMaxGroups ? num_threads : kMaxGroups) {
    for (int thread = 1; thread < num_threads; ++thread) workers_.emplace_back([this, thread] { work(thread); });
}

Pool::~Pool() {
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        stopping_ = true;
    }
    wake_workers_.notify_all();
    for (std::thread& worker : workers_) worker.join();
}

void Pool::run(int num_units, Body body, void* context) {
    if (num_units <= 1 || workers_.empty()) {
        for (int unit = 0; unit < num_units; ++unit) body(context, unit, 0);
        return;
    }
    const std::uint32_t number = last_job_of(0) + 1;
    Job& job = jobs_[number % kJobs];
    job.body = body;
    job.context = context;
    for (int group = 0; group < num_groups_; ++group) job.num_done[group].value.store(0, std::memory_order_relaxed);
    job.num_units.store(num_units, std::memory_order_relaxed);
    for (int group = num_groups_ - 1; group >= 0; --group) {
        const std::uint64_t first = static_cast<std::uint64_t>(range_begin(num_units, group));
        claims_[group].value.store(std::uint64_t{number} << 32 | first, std::memory_order_seq_cst);
    }
    // Either we see that somebody sleeps, or he, who says so before he looks once more, sees the new job.
    if (num_asleep_.load(std::memory_order_seq_cst) > 0) {
        const std::lock_guard<std::mutex> lock(mutex_);
        wake_workers_.notify_all();
    }
    claim_and_run(0);
    wait_until_done(job, num_units);
}

int Pool::range_begin(int num_units, int group) const {
    return static_cast<int>(std::int64_t{num_units} * group / num_groups_);
}

std::uint32_t Pool::last_job_of(int group) const {
    return job_number(claims_[group].value.load(std::memory_order_seq_cst));
}

// Runs units of the newest job until none is left to claim, those of the thread's own range first. Says whether it ran
// any.
bool Pool::claim_and_run(int thread) {
    const int own = thread % num_groups_;
    Job* running = nullptr;  // all units that are claimed here are of one job: it is not over before they are counted
    int num_done = 0;
    for (int i = 0; i < num_groups_; ++i) {
        const int group = own + i < num_groups_ ? own + i : own + i - num_groups_;
        std::atomic<std::uint64_t>& next = claims_[group].value;
        std::uint64_t claim = next.load(std::memory_order_acquire);
        for (;;) {
            Job& job = jobs_[job_number(claim) % kJobs];
            const int unit = static_cast<int>(claim & 0xffffffffu);
            if (unit >= range_begin(job.num_units.load(std::memory_order_relaxed), group + 1)) break;
            // The exchange fails if another thread took the unit or the job is over; the claim then holds what is new.
            if (!next.compare_exchange_weak(claim, claim + 1, std::memory_order_acq_rel, std::memory_order_acquire))
                continue;
            // The unit is ours, so its job is not done, and nobody writes what it says.
            job.body(job.context, unit, thread);
            running = &job;
            ++num_done;
            claim = next.load(std::memory_order_acquire);
        }
    }
    if (running == nullptr) return false;
    running->num_done[own].value.fetch_add(num_done, std::memory_order_seq_cst);
    if (caller_sleeps_.load()) {
        const std::lock_guard<std::mutex> lock(mutex_);
        wake_caller_.notify_one();
    }
    return true;
}

void Pool::wait_until_done(const Job& job, int num_units) {
    const auto is_done = [&] {
        int num_done = 0;
        for (int group = 0; group < num_groups_; ++group)
            num_done += job.num_done[group].value.load(std::memory_order_seq_cst);
        return num_done == num_units;
    };
    if (spin_until(is_done)) return;
    std::unique_lock<std::mutex> lock(mutex_);
    caller_sleeps_ = true;
    wake_caller_.wait(lock, is_done);
    caller_sleeps_ = false;
}

void Pool::work(int thread) {
    const int group = thread % num_groups_;
    while (!stopping_.load()) {
        const std::uint32_t last_job = last_job_of(group);
        if (!claim_and_run(thread)) wait_for_work(group, last_job);
    }
}

void Pool::wait_for_work(int group, std::uint32_t last_job) {
    const auto is_new = [&] { return last_job_of(group) != last_job || stopping_.load(); };
    if (spin_until(is_new)) return;
    std::unique_lock<std::mutex> lock(mutex_);
    num_asleep_.fetch_add(1, std::memory_order_seq_cst);
    wake_workers_.wait(lock, is_new);
    num_asleep_.fetch_sub(1, std::memory_order_seq_cst);
}

}  // namespace octavo
