// SPDX-License-Identifier: GPL-2.0
/*
 * A listener for process events: shows each session that begins, each process
 * that exits, and what was lost, until it is interrupted.
 *
 * Needs the headers of a kernel that has PROC_CN_FEATURE_IDENTITY:
 *
 *	cc -I usr/include listener.c -o listener
 */

#include <ctype.h>
#include <dirent.h>
#include <err.h>
#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <linux/cn_proc.h>
#include <linux/connector.h>
#include <linux/netlink.h>

/* What this program can't do without. */
#define FEATURES (PROC_CN_FEATURE_ACK | PROC_CN_FEATURE_SEQ | \
		  PROC_CN_FEATURE_SID_ORIGIN)

#define MAX_CPUS 8192
#define NO_CPU ((__u32)-1)

#define REQUEST_SEQ 1000
#define REQUEST_ACK 2000
#define ANSWER_LIMIT_MS 1000

struct listener {
	int sock;
	bool lost;		/* something, and /proc was not read since */
	__u32 next[MAX_CPUS];	/* number of each CPU's next message */
};

union datagram {
	struct nlmsghdr first;
	char bytes[PROC_CN_BATCH_SIZE];
};

struct message {
	__u32 seq;
	__u32 ack;
	struct proc_event event;
	struct proc_event_identity identity;	/* 0 if the kernel has none */
};

static void open_socket(struct listener *listener)
{
	struct sockaddr_nl address = {
		.nl_family = AF_NETLINK,
		.nl_groups = CN_IDX_PROC,
	};

	listener->sock = socket(AF_NETLINK, SOCK_DGRAM | SOCK_CLOEXEC,
				NETLINK_CONNECTOR);
	if (listener->sock < 0)
		err(EXIT_FAILURE, "socket");
	if (bind(listener->sock, (struct sockaddr *)&address, sizeof(address)))
		err(EXIT_FAILURE, "bind");
}

/* Sends a struct proc_input or a struct proc_listen. */
static void request(const struct listener *listener, const void *data,
		    __u16 len)
{
	union {
		struct nlmsghdr header;
		char bytes[NLMSG_SPACE(sizeof(struct cn_msg) +
				       sizeof(struct proc_listen))];
	} buffer = {};
	struct cn_msg *msg = NLMSG_DATA(&buffer.header);

	buffer.header.nlmsg_len = NLMSG_LENGTH(sizeof(*msg) + len);
	buffer.header.nlmsg_type = NLMSG_DONE;
	msg->id.idx = CN_IDX_PROC;
	msg->id.val = CN_VAL_PROC;
	msg->seq = REQUEST_SEQ;
	msg->ack = REQUEST_ACK;
	msg->len = len;
	memcpy(msg->data, data, len);

	if (send(listener->sock, &buffer, buffer.header.nlmsg_len, 0) < 0)
		err(EXIT_FAILURE, "send");
}

/*
 * Reads one datagram.  Returns its length, 0 when it is not the kernel's, or -1
 * with errno EAGAIN when there is none at all, ENOBUFS when events were lost.
 */
static ssize_t receive(const struct listener *listener,
		       union datagram *datagram)
{
	struct sockaddr_nl sender;
	socklen_t sender_len = sizeof(sender);
	ssize_t len;

	len = recvfrom(listener->sock, datagram, sizeof(*datagram),
		       MSG_DONTWAIT, (struct sockaddr *)&sender, &sender_len);
	if (len > 0 && sender.nl_pid != 0)
		return 0;
	return len;
}

/* Copies an event or an answer.  Returns false when it is something else. */
static bool parse(const struct nlmsghdr *header, struct message *message)
{
	const struct cn_msg *msg = NLMSG_DATA(header);
	const __u32 len = NLMSG_LENGTH(sizeof(*msg) + sizeof(message->event));

	if (header->nlmsg_len < len ||
	    msg->id.idx != CN_IDX_PROC || msg->id.val != CN_VAL_PROC)
		return false;

	memset(message, 0, sizeof(*message));
	message->seq = msg->seq;
	message->ack = msg->ack;
	/* In the datagram they are not aligned. */
	memcpy(&message->event, msg->data, sizeof(message->event));
	if (header->nlmsg_len >= len + sizeof(message->identity))
		memcpy(&message->identity, msg->data + sizeof(message->event),
		       sizeof(message->identity));
	return true;
}

/* Asks for events, and makes sure that they come. */
static void start(struct listener *listener, __u32 mask)
{
	struct proc_input input = {
		.mcast_op = PROC_CN_MCAST_LISTEN,
		.event_type = mask,
	};
	struct proc_listen listen = {
		.mcast_op = PROC_CN_MCAST_LISTEN,
		.event_type = mask,
	};
	struct pollfd pollfd = { .events = POLLIN };
	const struct proc_event *event;
	union datagram datagram;
	struct message answer;
	__u32 features;
	ssize_t len;

	request(listener, &input, sizeof(input));

	/* Kernels with PROC_CN_FEATURE_ACK send nothing before the answer. */
	pollfd.fd = listener->sock;
	poll(&pollfd, 1, ANSWER_LIMIT_MS);
	len = receive(listener, &datagram);
	if (!NLMSG_OK(&datagram.first, len) ||
	    !parse(&datagram.first, &answer) ||
	    answer.event.what != PROC_EVENT_NONE ||
	    answer.seq != REQUEST_SEQ || answer.ack != REQUEST_ACK + 1)
		errx(EXIT_FAILURE, "this kernel does not answer requests");

	event = &answer.event;
	if (event->event_data.ack.err) {
		errno = event->event_data.ack.err;
		err(EXIT_FAILURE, "cannot listen");
	}
	features = event->event_data.ack.features;
	if ((features & FEATURES) != FEATURES)
		errx(EXIT_FAILURE, "this kernel has features 0x%x only",
		     features);

	/* The numbers of the answer's CPU go on from it, all others from 0. */
	if (event->cpu < MAX_CPUS)
		listener->next[event->cpu] = answer.seq + 1;
	printf("listening, features 0x%x\n", features);

	/*
	 * Events may come before this answer, which is of no interest: on an
	 * error nothing changes, and events come as they do on older kernels.
	 */
	if (features & PROC_CN_FEATURE_BATCH)
		listen.flags |= PROC_CN_LISTEN_BATCH;
	if (features & PROC_CN_FEATURE_IDENTITY)
		listen.flags |= PROC_CN_LISTEN_IDENTITY;
	if (listen.flags)
		request(listener, &listen, sizeof(listen));
}

/* Notices what is missing before a message. */
static void check_number(struct listener *listener,
			 const struct message *message)
{
	__u32 cpu = message->event.cpu;
	__u32 gap;

	if (cpu == NO_CPU || cpu >= MAX_CPUS)
		return;

	gap = message->seq - listener->next[cpu];
	listener->next[cpu] = message->seq + 1;
	if (gap) {
		printf("lost %u events of CPU %u\n", gap, cpu);
		listener->lost = true;
	}
}

/* Ends a line with what tells the process from others that get its number. */
static void show_identity(const struct proc_event_identity *identity)
{
	if (identity->process)
		printf(" (pidfd inode %llu, cgroup %llu)",
		       (unsigned long long)identity->process,
		       (unsigned long long)identity->cgroup);
	putchar('\n');
}

static void show(const struct message *message)
{
	const struct proc_event *event = &message->event;
	const struct sid_proc_event *sid = &event->event_data.sid;
	const struct exit_proc_event *exit = &event->event_data.exit;

	switch (event->what) {
	case PROC_EVENT_SID:
		printf("session %d began: child of %d, left session %d and process group %d",
		       sid->process_tgid, sid->parent_tgid, sid->session,
		       sid->process_group);
		show_identity(&message->identity);
		break;
	case PROC_EVENT_EXIT:
		/* Other threads of a process are of no interest here. */
		if (exit->process_pid != exit->process_tgid)
			break;
		if (WIFSIGNALED(exit->exit_code))
			printf("process %d was killed by signal %d",
			       exit->process_tgid, WTERMSIG(exit->exit_code));
		else
			printf("process %d exited with status %d",
			       exit->process_tgid, WEXITSTATUS(exit->exit_code));
		show_identity(&message->identity);
		break;
	default:
		break;
	}
}

/* Shows a session's leader, if the process is one and is still there. */
static void show_if_leader(const char *pid)
{
	char path[64], stat[512];
	int session;
	FILE *file;
	size_t len;
	char *rest;

	snprintf(path, sizeof(path), "/proc/%s/stat", pid);
	file = fopen(path, "re");
	if (!file)
		return;
	len = fread(stat, 1, sizeof(stat) - 1, file);
	fclose(file);
	stat[len] = '\0';

	/* The name may hold anything; behind it: state, parent, group, session. */
	rest = strrchr(stat, ')');
	if (rest && sscanf(rest, ") %*c %*d %*d %d", &session) == 1 &&
	    session == atoi(pid))
		printf("session %d is there\n", session);
}

/* Finds out by /proc what no event tells: what was before, and what was lost. */
static void show_all_sessions(void)
{
	struct dirent *entry;
	DIR *proc;

	proc = opendir("/proc");
	if (!proc)
		err(EXIT_FAILURE, "/proc");
	while ((entry = readdir(proc)))
		if (isdigit((unsigned char)entry->d_name[0]))
			show_if_leader(entry->d_name);
	closedir(proc);
}

/* Goes through a datagram: there is one message in it, or a batch of events. */
static void walk(struct listener *listener, const union datagram *datagram,
		 ssize_t len)
{
	const struct nlmsghdr *header;
	struct message message;

	for (header = &datagram->first; NLMSG_OK(header, len);
	     header = NLMSG_NEXT(header, len)) {
		if (parse(header, &message)) {
			check_number(listener, &message);
			show(&message);
		}
	}
}

/* Reads all there is, and then makes up for what is not. */
static void drain(struct listener *listener)
{
	union datagram datagram;

	for (;;) {
		ssize_t len = receive(listener, &datagram);

		if (len >= 0) {
			walk(listener, &datagram, len);
		} else if (errno == ENOBUFS) {
			puts("no room for more events");
			listener->lost = true;
		} else if (errno == EAGAIN) {
			break;
		} else if (errno != EINTR) {
			err(EXIT_FAILURE, "recvfrom");
		}
	}

	/* Not before: until the queue is empty, new events are lost, too. */
	if (listener->lost) {
		listener->lost = false;
		show_all_sessions();
	}
}

int main(void)
{
	static struct listener listener;
	struct pollfd pollfd = { .events = POLLIN };

	setvbuf(stdout, NULL, _IOLBF, 0);
	open_socket(&listener);
	start(&listener, PROC_EVENT_SID | PROC_EVENT_EXIT);

	/* In this order, so that no session is missed in between. */
	show_all_sessions();
	pollfd.fd = listener.sock;
	for (;;) {
		drain(&listener);
		if (poll(&pollfd, 1, -1) < 0 && errno != EINTR)
			err(EXIT_FAILURE, "poll");
	}
}
