// A pool of threads that share a job's units of work.
//
// A job's units are cut into as many even ranges as there are groups of threads. Units are claimed one by one from an
// atomic counter for each range: a thread goes along its own group's, so that it reads memory in one stream, and then
// takes what is left of the others', so that a thread that loses its core holds up at most one unit. Nothing that is
// written for each unit is shared by more than a group. Who waits spins for a moment, then sleeps: on a busy machine
// that frees the core for the thread that is waited for. Which thread runs which unit is left to chance: a unit's
// result must not depend on it.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace octavo {

class Pool {
public:
    explicit Pool(int num_threads);  // the caller of `run` is one of them
    ~Pool();
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    int num_threads() const { return static_cast<int>(workers_.size()) + 1; }

    // Calls body(context, unit, thread) once for each unit of [0, num_units), thread in [0, num_threads). Returns when
    // all are done. Only one thread at a time may call it. `body` must not throw.
    using Body = void (*)(void* context, int unit, int thread);
    void run(int num_units, Body body, void* context);

    template <class F>
    void each(int num_units, F&& f) {
        run(num_units, [](void* context, int unit, int thread) { (*static_cast<F*>(context))(unit, thread); }, &f);
    }

private:
    static constexpr int kMaxGroups = 8;
    static constexpr int kJobs = 8;  // a job's place is not written again before seven more jobs are done

    struct alignas(64) Count {
        std::atomic<int> value{0};
    };
    struct alignas(64) Claim {
        std::atomic<std::uint64_t> value{0};  // number of the job << 32 | next unit of the range
    };
    struct Job {
        std::atomic<int> num_units{0};
        Body body = nullptr;
        void* context = nullptr;
        Count num_done[kMaxGroups];  // by the threads of a group, whichever range the units were of
    };

    int range_begin(int num_units, int group) const;
    void work(int thread);
    bool claim_and_run(int thread);
    std::uint32_t last_job_of(int group) const;
    void wait_for_work(int group, std::uint32_t last_job);
    void wait_until_done(const Job& job, int num_units);

    const int num_groups_;
    Job jobs_[kJobs];
    Claim claims_[kMaxGroups];
    alignas(64) std::atomic<int> num_asleep_{0};
    std::atomic<bool> caller_sleeps_{false};
    std::atomic<bool> stopping_{false};
    std::mutex mutex_;
    std::condition_variable wake_workers_, wake_caller_;
    std::vector<std::thread> workers_;
};

}  // namespace octavo
