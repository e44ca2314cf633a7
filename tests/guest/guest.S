/* A complete guest in a few kilobytes, for tests of boot, snapshot, restore and clone on any VMM that starts a PVH ELF.
 *
 * It prints on the first serial port (0x3f8)
 *
 *     boot nonce=<16 hex digits>                                        once: the time stamp counter at boot
 *     tick nonce=<the same> count=<8 hex digits> shm=<16 hex digits>    20 times a second
 *
 * where shm are the first 8 bytes of the ivshmem device in memory order, or '-' without one; the count is also written
 * to offset 16 of that device. Nonce and count live in RAM: a clone that prints the nonce of its original and goes on
 * from its count has got that RAM. Between ticks the CPU halts until the local APIC's timer wakes it.
 *
 * Words of the command line:
 *     dirty=<n>   write to n pages of RAM from 2 MiB on at every tick (default 64)
 *     mode=off    power off (ACPI S5) at the third tick
 *     mode=panic  tell the pvpanic device, then halt for good, at the third tick
 *     mode=triple triple fault at the third tick (a reset)
 *     mode=flood  from the third tick on fill the console as fast as it takes bytes
 */

        .set SERIAL, 0x3f8
        .set APIC, 0xfee00000
        .set TIMER_VECTOR, 0x20
        .set TICK, 3125000              /* of 1 GHz / 16: 50 ms; the APIC timer's clock of both KVM and QEMU */
        .set WINDOW, 0x40000000         /* virtual address at which a device beyond 4 GiB is mapped */
        .set DIRTY_START, 0x200000
        .set IVSHMEM, 0x11101af4        /* PCI device and vendor */
        .set PVPANIC, 0x00111b36
        .set PRESENT_RW_LARGE, 0x83
        .set PRESENT_RW, 0x03
        .set UNCACHED, 0x10

        .section .note.Xen, "a", @note  /* how a VMM finds a PVH entry point */
        .long 4, 8, 18                  /* sizes of name and value; XEN_ELFNOTE_PHYS32_ENTRY */
        .asciz "Xen"
        .quad start

        .text
        .code32
        .globl start
start:                                  /* 32-bit protected mode, no paging; ebx: struct hvm_start_info */
        cld
        movl $stack_top, %esp
        lgdt gdt_pointer
        ljmp $0x08, $1f
1:      movw $0x18, %ax
        movw %ax, %ds
        movw %ax, %es
        movw %ax, %ss
        movl 24(%ebx), %ebp             /* its cmdline_paddr */
        movl $bss_start, %edi           /* after a reset RAM is as it was */
        movl $bss_end, %ecx
        subl %edi, %ecx
        xorl %eax, %eax
        rep stosb
        call set_up_paging
        ljmp $0x10, $long_mode

set_up_paging:                          /* 2 MiB pages, everything below 4 GiB where it is, devices uncached */
        movl $page_directories, %edi
        movl $PRESENT_RW_LARGE, %eax
1:      cmpl $0xc0000000, %eax
        jb 2f
        orl $UNCACHED, %eax
2:      movl %eax, (%edi)
        addl $8, %edi
        addl $0x200000, %eax
        jnc 1b
        movl $page_directories + PRESENT_RW, %eax
        movl $directory_pointers, %edi
        movl $4, %ecx
3:      movl %eax, (%edi)
        addl $8, %edi
        addl $4096, %eax
        loop 3b
        movl $directory_pointers + PRESENT_RW, top_level
        movl %cr4, %eax
        orl $0x20, %eax                 /* PAE */
        movl %eax, %cr4
        movl $top_level, %eax
        movl %eax, %cr3
        movl $0xc0000080, %ecx          /* EFER */
        rdmsr
        orl $0x100, %eax                /* LME */
        wrmsr
        movl %cr0, %eax
        orl $0x80000000, %eax           /* PG */
        movl %eax, %cr0
        ret

        .code64
long_mode:
        rdtsc
        movl %eax, nonce
        movl %edx, nonce + 4
        call read_command_line
        call find_shared_memory
        call set_up_timer
        movl $boot_text, %esi
        call print
        call print_nonce
        call print_newline

main:   sti                             /* takes effect after hlt: a tick can't slip in between */
        hlt
        cli
        cmpb $0, ticked
        je main
        movb $0, ticked
        incl count
        call dirty_pages
        call report
        cmpl $3, count
        jb main
        movb mode, %al
        cmpb $'o', %al
        je power_off
        cmpb $'p', %al
        je panic
        cmpb $'t', %al
        je triple_fault
        cmpb $'f', %al
        je flood
        jmp main

/* --- endings ------------------------------------------------------------------------------------------------- */

power_off:
        movw $0x600, %dx                /* Cloud Hypervisor: sleep control, S5 and enable */
        movb $0x34, %al
        outb %al, %dx
        movw $0x604, %dx                /* QEMU q35: PM1a control, type 0 and SLP_EN */
        movw $0x2000, %ax
        outw %ax, %dx
        jmp halt

panic:  movw $0x505, %dx                /* pvpanic on ISA */
        movb $1, %al
        outb %al, %dx
        movl $PVPANIC, %ebx
        call find_pci
        jc halt
        movb $0x10, %al                 /* pvpanic on PCI: BAR 0 */
        call read_pci
        andl $~0xf, %eax
        movb $1, (%eax)
halt:   cli
        hlt
        jmp halt

triple_fault:
        lidt no_idt_pointer
        ud2

flood:  movl $flood_text, %esi
        call print
        jmp flood

/* --- what a tick does ---------------------------------------------------------------------------------------- */

dirty_pages:
        movl dirty, %ecx
        movl $DIRTY_START, %edi
        movl count, %eax
        jecxz 2f
1:      movl %eax, (%edi)
        addl $4096, %edi
        loop 1b
2:      ret

report: movl $tick_text, %esi
        call print
        call print_nonce
        movl $count_text, %esi
        call print
        movl count, %eax
        call print_hex
        movl $shm_text, %esi
        call print
        movl shared, %edi
        testl %edi, %edi
        jz 1f
        movl (%edi), %eax
        bswap %eax
        call print_hex
        movl 4(%edi), %eax
        bswap %eax
        call print_hex
        movl count, %eax
        movl %eax, 16(%edi)
        jmp print_newline
1:      movb $'-', %al
        call print_byte
print_newline:
        movb $'\n', %al
print_byte:                             /* al */
        pushq %rdx
        pushq %rax
        movw $SERIAL + 5, %dx
1:      inb %dx, %al
        testb $0x20, %al                /* transmitter empty */
        jz 1b
        popq %rax
        movw $SERIAL, %dx
        outb %al, %dx
        popq %rdx
        ret

print:  lodsb                           /* esi: text that ends with 0 */
        testb %al, %al
        jz 1f
        call print_byte
        jmp print
1:      ret

print_nonce:
        movl nonce + 4, %eax
        call print_hex
        movl nonce, %eax
print_hex:                              /* eax: eight digits */
        movl $8, %ecx
        movl %eax, %ebx
1:      roll $4, %ebx
        movl %ebx, %eax
        andl $0xf, %eax
        movb digits(%rax), %al
        call print_byte
        loop 1b
        ret

/* --- setting up ---------------------------------------------------------------------------------------------- */

read_command_line:                      /* ebp: text that ends with 0, or null */
        movl $64, dirty
        testl %ebp, %ebp
        jz 9f
1:      cmpb $0, (%ebp)
        je 9f
        cmpl $0x65646f6d, (%ebp)        /* "mode" */
        jne 2f
        movb 5(%ebp), %al
        movb %al, mode
2:      cmpl $0x74726964, (%ebp)        /* "dirt" */
        jne 4f
        leal 6(%ebp), %esi
        xorl %ecx, %ecx
3:      movzbl (%esi), %eax
        subl $'0', %eax
        cmpl $9, %eax
        ja 5f
        imull $10, %ecx
        addl %eax, %ecx
        incl %esi
        jmp 3b
5:      movl %ecx, dirty
4:      incl %ebp
        jmp 1b
9:      ret

find_shared_memory:
        movl $IVSHMEM, %ebx
        call find_pci
        jc 1f
        movb $0x04, %al                 /* command register: respond to memory accesses */
        call read_pci
        orl $2, %eax
        outl %eax, %dx
        movb $0x1c, %al                 /* BAR 2, upper half */
        call read_pci
        movl %eax, %esi
        movb $0x18, %al                 /* lower half */
        call read_pci
        andl $~0xf, %eax
        movl %eax, %edi
        andl $0x1fffff, %edi
        addl $WINDOW, %edi
        movl %edi, shared
        andl $~0x1fffff, %eax
        orl $PRESENT_RW_LARGE | UNCACHED, %eax
        movl %eax, page_directories + 4096 * (WINDOW >> 30)
        movl %esi, page_directories + 4096 * (WINDOW >> 30) + 4
        invlpg WINDOW
1:      ret

find_pci:                               /* ebx: device << 16 | vendor; ecx: its address on bus 0, or carry */
        movl $0x80000000, %ecx
1:      xorb %al, %al
        call read_pci
        cmpl %ebx, %eax
        je 2f                           /* equal: no carry */
        addl $0x800, %ecx
        cmpl $0x80010000, %ecx
        jb 1b
        stc
2:      ret

read_pci:                               /* ecx: address, al: register; eax: value, dx: the data port */
        movzbl %al, %eax
        orl %ecx, %eax
        movw $0xcf8, %dx
        outl %eax, %dx
        movw $0xcfc, %dx
        inl %dx, %eax
        ret

set_up_timer:
        movl $idt + 16 * TIMER_VECTOR, %edi
        movl $256 - TIMER_VECTOR, %ecx  /* below are the CPU's exceptions: a triple fault */
        movl $interrupt, %eax
        movl %eax, %edx
        andl $0xffff, %eax
        orl $0x00100000, %eax           /* code selector, bits 0 to 15 of the address */
        andl $0xffff0000, %edx
        orl $0x8e00, %edx               /* bits 16 to 31, interrupt gate; the upper half stays 0 */
1:      movl %eax, (%edi)
        movl %edx, 4(%edi)
        addl $16, %edi
        loop 1b
        lidt idt_pointer
        movb $0xff, %al                 /* no interrupts of the old controllers */
        outb %al, $0x21
        outb %al, $0xa1
        movl $APIC, %edi
        movl $0x1ff, 0xf0(%edi)         /* on */
        movl $0, 0x80(%edi)
        movl $0x3, 0x3e0(%edi)          /* divide by 16 */
        movl $0x20000 | TIMER_VECTOR, 0x320(%edi)       /* periodic */
        movl $TICK, 0x380(%edi)
        ret

interrupt:
        pushq %rdi
        movb $1, ticked
        movl $APIC, %edi
        movl $0, 0xb0(%edi)             /* end of interrupt */
        popq %rdi
        iretq

        .section .rodata
digits: .ascii "0123456789abcdef"
boot_text: .asciz "boot nonce="
tick_text: .asciz "tick nonce="
count_text: .asciz " count="
shm_text: .asciz " shm="
flood_text: .asciz "flood flood flood flood flood flood flood flood flood flood flood\n"
        .balign 8
gdt:    .quad 0, 0x00cf9b000000ffff, 0x00af9b000000ffff, 0x00cf93000000ffff  /* null, 32-bit code, 64-bit code, data */
gdt_pointer:
        .word . - gdt - 1
        .quad gdt
idt_pointer:
        .word 256 * 16 - 1
        .quad idt
no_idt_pointer:
        .word 0
        .quad 0

        .bss
        .balign 4096
bss_start:
page_directories: .skip 4 * 4096
directory_pointers: .skip 4096
top_level: .skip 4096
idt:    .skip 256 * 16
nonce:  .skip 8
count:  .skip 4
dirty:  .skip 4
shared: .skip 4
mode:   .skip 1
ticked: .skip 1
        .balign 16
bss_end:
        .skip 1024
stack_top:
