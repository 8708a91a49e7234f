// SPDX-License-Identifier: Apache-2.0
// Switching between stacks: what a function call preserves is kept on the stack that is left.
#pragma once

#if !defined(__x86_64__)
#error "the CUDA emulator switches stacks on x86-64 only"
#endif

extern "C" {
// Saves the stack pointer in *save and goes on where `load` was saved.
void emulator_switch(void** save, void* load);
// Goes on where `load` was saved; the present stack is given up.
[[noreturn]] void emulator_resume(void* load);
}
