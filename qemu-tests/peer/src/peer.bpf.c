// SPDX-License-Identifier: GPL-2.0
/*
 * Writes a record with the same content into a ring buffer for each process
 * event. An eBPF user would use this instead of a listener.
 *
 * Kernel types have only the fields that are used. libbpf finds their offsets.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#define BUFFER_BYTES (16 << 20)
#define COMM_BYTES 16

struct task_struct {
	int pid;
	int tgid;
	struct task_struct *real_parent;
	int exit_code;
	int exit_signal;
} __attribute__((preserve_access_index));

struct linux_binprm;

/* The context of a classic tracepoint at the end of a system call. */
struct syscall_exit {
	unsigned long common;
	long number;
	long result;
};

/* As in struct proc_event, with the same fields for each kind. */
struct record {
	__u32 what;
	__u32 cpu;
	__u64 timestamp;
	union {
		__u32 words[6];
		struct {
			__u32 task[2];
			char comm[COMM_BYTES];
		};
	};
};

/* Kinds, as in PROC_EVENT_*. */
enum {
	FORK = 0x1,
	EXEC = 0x2,
	SID = 0x80,
	COMM = 0x200,
	EXIT = 0x80000000,
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, BUFFER_BYTES);
} records SEC(".maps");

static __always_inline struct record *reserve(__u32 what, struct task_struct *task)
{
	struct record *record = bpf_ringbuf_reserve(&records, sizeof(*record), 0);

	if (!record)
		return NULL;
	record->what = what;
	record->cpu = bpf_get_smp_processor_id();
	record->timestamp = bpf_ktime_get_ns();
	record->words[0] = task->pid;
	record->words[1] = task->tgid;
	return record;
}

/* No process is woken. This is the cheapest way for a reader that reads now and then. */
static __always_inline void submit(struct record *record)
{
	bpf_ringbuf_submit(record, BPF_RB_NO_WAKEUP);
}

static __always_inline int submit_words(struct record *record, __u32 a, __u32 b, __u32 c, __u32 d)
{
	if (!record)
		return 0;
	record->words[2] = a;
	record->words[3] = b;
	record->words[4] = c;
	record->words[5] = d;
	submit(record);
	return 0;
}

SEC("tp_btf/sched_process_fork")
int BPF_PROG(on_fork, struct task_struct *parent, struct task_struct *child)
{
	return submit_words(reserve(FORK, parent), child->pid, child->tgid, 0, 0);
}

SEC("tp_btf/sched_process_exec")
int BPF_PROG(on_exec, struct task_struct *task, int old_pid, struct linux_binprm *bprm)
{
	return submit_words(reserve(EXEC, task), 0, 0, 0, 0);
}

SEC("tp_btf/sched_process_exit")
int BPF_PROG(on_exit, struct task_struct *task)
{
	struct task_struct *parent = task->real_parent;

	return submit_words(reserve(EXIT, task), task->exit_code, task->exit_signal, parent->pid,
			    parent->tgid);
}

SEC("tp_btf/task_rename")
int BPF_PROG(on_comm, struct task_struct *task, const char *comm)
{
	struct record *record = reserve(COMM, task);

	if (!record)
		return 0;
	bpf_probe_read_kernel_str(record->comm, COMM_BYTES, comm);
	submit(record);
	return 0;
}

SEC("tracepoint/syscalls/sys_exit_setsid")
int on_sid(struct syscall_exit *context)
{
	struct task_struct *task, *parent;

	if (context->result < 0)
		return 0;
	task = bpf_get_current_task_btf();
	parent = task->real_parent;
	return submit_words(reserve(SID, task), parent->pid, parent->tgid, 0, 0);
}

char LICENSE[] SEC("license") = "GPL";
