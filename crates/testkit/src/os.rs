//! The clock and the randomness that a simulated thread sees, down to what the C library answers.
//!
//! Product code asks for the time and for random bytes in many places, and so do its dependencies (hash maps, `select!`
//! and channels of the runtime, back-offs, UUIDs). All of them end in `clock_gettime` and `getrandom`; a program that
//! contains this module answers both itself, on threads that asked for it. So the code under test is the code that
//! ships, and nobody has to remember to hand a clock around.

use std::cell::Cell;
use std::time::Duration;

use tokio::time::Instant;

/// What the simulated world's clock shows at its start: 2026-01-01T00:00:00Z.
const EPOCH: Duration = Duration::from_secs(1_767_225_600);
/// What its monotonic clock shows then.
const UPTIME: Duration = Duration::from_secs(1_000);

thread_local! {
    // Neither has a destructor: reading them from inside the C library's functions allocates nothing.
    static RANDOM: Cell<Option<u64>> = const { Cell::new(None) };
    static START: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// From here on this thread's random bytes follow from `seed`.
pub fn seed_thread(seed: u64) {
    RANDOM.set(Some(seed));
}

/// From here on this thread's clocks follow the runtime's paused clock. Call it inside such a runtime.
pub fn follow_paused_clock() {
    START.set(Some(Instant::now()));
}

/// Back to the real clock, for what comes after the runtime.
pub fn leave_paused_clock() {
    START.set(None);
}

/// Time since [`follow_paused_clock`].
fn elapsed() -> Option<Duration> {
    START.get().map(|start| start.elapsed())
}

mod c {
    //! Symbols of the C library that the linker takes from here.

    use std::ffi::{c_int, c_uint, c_void};

    use super::{EPOCH, RANDOM, UPTIME, elapsed};

    /// # Safety
    ///
    /// As `getrandom(2)`: `buffer` must be valid for `length` bytes.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn getrandom(buffer: *mut c_void, length: usize, flags: c_uint) -> isize {
        let Some(mut state) = RANDOM.get() else {
            // SAFETY: the arguments are the caller's own.
            return unsafe { libc::syscall(libc::SYS_getrandom, buffer, length, flags) } as isize;
        };
        // SAFETY: the caller says that the buffer has that length.
        let bytes = unsafe { std::slice::from_raw_parts_mut(buffer.cast::<u8>(), length) };
        for chunk in bytes.chunks_mut(8) {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            chunk.copy_from_slice(&(z ^ (z >> 31)).to_le_bytes()[..chunk.len()]);
        }
        RANDOM.set(Some(state));
        length as isize
    }

    /// # Safety
    ///
    /// As `clock_gettime(2)`: `time` must be valid for a write.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn clock_gettime(clock: libc::clockid_t, time: *mut libc::timespec) -> c_int {
        let zero = match clock {
            libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_COARSE => Some(EPOCH),
            libc::CLOCK_MONOTONIC | libc::CLOCK_MONOTONIC_COARSE | libc::CLOCK_BOOTTIME => Some(UPTIME),
            _ => None,
        };
        match zero.and_then(|zero| Some(zero + elapsed()?)) {
            Some(now) => {
                let seconds = now.as_secs() as libc::time_t;
                // SAFETY: the caller says that it may be written.
                unsafe { *time = libc::timespec { tv_sec: seconds, tv_nsec: now.subsec_nanos().into() } };
                0
            }
            // SAFETY: the arguments are the caller's own.
            None => unsafe { libc::syscall(libc::SYS_clock_gettime, clock, time) as c_int },
        }
    }
}
