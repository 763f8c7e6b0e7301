/* Preloaded into ranks: a transport that sums wrongly. One element of large float all-reduces is off by
   one on rank 1. */

#include <mpi.h>

int MPI_Allreduce(const void *sent, void *received, int count, MPI_Datatype type, MPI_Op op, MPI_Comm comm) {
    int rank, code = PMPI_Allreduce(sent, received, count, type, op, comm);
    PMPI_Comm_rank(comm, &rank);
    if (type == MPI_FLOAT && count > 1000 && rank == 1)
        ((float *)received)[17] += 1;
    return code;
}
