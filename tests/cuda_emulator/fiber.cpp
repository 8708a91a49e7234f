// SPDX-License-Identifier: Apache-2.0
// The stack switch for x86-64, System V calling convention: rbx, rbp and r12 .. r15 belong to the caller.
#include "fiber.h"

asm(R"(
.text
.globl emulator_switch
.type emulator_switch, @function
emulator_switch:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rdi
.globl emulator_resume
.type emulator_resume, @function
emulator_resume:
  mov %rdi, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  ret
.size emulator_switch, .-emulator_switch
)");
